//! What a file claims to be, and whether its content bears that out.

use super::Claims;
use super::kind::{Family, Kind};

/// Claims we understand: mime types and extensions of one family. An unknown claim claims nothing.
const CLAIMS: [(Family, &[&str], &[&str]); 15] = [
    (
        Family::Text,
        &[
            "application/json",
            "application/x-ndjson",
            "application/yaml",
            "application/toml",
            "application/javascript",
        ],
        &[
            "txt", "md", "markdown", "rst", "adoc", "asciidoc", "csv", "tsv", "json", "jsonl", "ndjson",
            "ipynb", "yaml", "yml", "toml", "ini", "log", "vtt", "srt", "tex", "rs", "py", "js", "ts", "go",
            "c", "h", "cpp", "java", "rb", "sql", "css", "diff",
        ],
    ),
    (
        Family::Markup,
        &["text/html", "application/xhtml+xml", "application/xml", "text/xml", "image/svg+xml"],
        &["html", "htm", "xhtml", "xml", "svg", "nxml", "rss", "atom"],
    ),
    (Family::Script, &["application/x-sh", "text/x-shellscript"], &["sh", "bash", "bat", "cmd", "ps1"]),
    (Family::Email, &["message/rfc822", "application/mbox"], &["eml", "mbox"]),
    (Family::Pdf, &["application/pdf", "application/x-pdf"], &["pdf"]),
    (Family::Rtf, &["application/rtf", "text/rtf"], &["rtf"]),
    (
        Family::Ole,
        &[
            "application/msword",
            "application/vnd.ms-excel",
            "application/vnd.ms-powerpoint",
            "application/vnd.ms-outlook",
        ],
        &["doc", "xls", "ppt", "msg"],
    ),
    (
        Family::Ooxml,
        &[
            "application/vnd.openxmlformats-officedocument.",
            "application/vnd.ms-excel.",
            "application/vnd.ms-word.",
        ],
        &["docx", "docm", "xlsx", "xlsm", "xlsb", "pptx", "pptm"],
    ),
    (Family::Odf, &["application/vnd.oasis.opendocument."], &["odt", "ods", "odp", "odg"]),
    (Family::Epub, &["application/epub+zip"], &["epub"]),
    (
        Family::Archive,
        &[
            "application/zip",
            "application/gzip",
            "application/x-gzip",
            "application/x-tar",
            "application/x-7z-compressed",
        ],
        &["zip", "gz", "tgz", "tar", "7z", "rar", "bz2", "xz"],
    ),
    (
        Family::Executable,
        &["application/x-executable", "application/x-msdownload"],
        &["exe", "dll", "so", "com", "jar"],
    ),
    (Family::Image, &["image/"], &["png", "jpg", "jpeg", "gif", "webp", "tif", "tiff", "bmp", "heic"]),
    (Family::Media, &["audio/", "video/"], &["mp3", "mp4", "wav", "ogg", "mov", "webm"]),
    (Family::Text, &["text/"], &[]),
];

/// What type truth says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Truth {
    Agrees,
    /// Declared one thing, found another; the policy decides.
    Differs {
        declared: String,
    },
    /// Something that runs, in the clothes of a document: refused whatever the policy.
    Masquerade {
        declared: String,
    },
}

/// Compares content with declared type and extension.
pub(super) fn judge(content: Kind, claims: &Claims) -> Truth {
    let by_mime = claims.mime.as_deref().and_then(mime_family);
    let by_name = claims.name.as_deref().and_then(extension).and_then(|e| extension_family(&e));
    let told: Vec<(Family, String)> = [
        by_mime.map(|family| (family, claims.mime.clone().unwrap_or_default())),
        by_name.map(|family| {
            (family, format!(".{}", claims.name.as_deref().and_then(extension).unwrap_or_default()))
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some((_, declared)) = told.iter().find(|(family, _)| masquerades(content.family, *family)) {
        return Truth::Masquerade { declared: declared.clone() };
    }
    match told.iter().find(|(family, _)| !agrees(content.family, *family)) {
        Some((_, declared)) => Truth::Differs { declared: declared.clone() },
        None => Truth::Agrees,
    }
}

fn masquerades(content: Family, claim: Family) -> bool {
    match content {
        Family::Executable => !matches!(claim, Family::Executable | Family::Archive),
        Family::Script => {
            !matches!(claim, Family::Executable | Family::Script | Family::Text | Family::Markup)
        }
        _ => false,
    }
}

fn agrees(content: Family, claim: Family) -> bool {
    if content == claim || content == Family::Empty {
        return true;
    }
    match claim {
        Family::Text | Family::Script => {
            matches!(content, Family::Text | Family::Markup | Family::Email | Family::Script)
        }
        Family::Markup => matches!(content, Family::Text),
        Family::Email => matches!(content, Family::Text | Family::Ole),
        // An encrypted OOXML document is an OLE file, and old Word saved RTF as .doc.
        Family::Ooxml => matches!(content, Family::Ole),
        Family::Ole => matches!(content, Family::Rtf),
        Family::Archive => matches!(content, Family::Ooxml | Family::Odf | Family::Epub),
        _ => false,
    }
}

/// The type the extractor is told: the content's, made finer by the name where the content is
/// only "text" or where a claim inside the same family says more.
pub(super) fn detected_mime(content: Kind, claims: &Claims) -> String {
    const FINER: [(&str, &str); 22] = [
        ("md", "text/markdown"),
        ("markdown", "text/markdown"),
        ("csv", "text/csv"),
        ("tsv", "text/tab-separated-values"),
        ("rst", "text/x-rst"),
        ("adoc", "text/asciidoc"),
        ("asciidoc", "text/asciidoc"),
        ("json", "application/json"),
        ("ipynb", "application/x-ipynb+json"),
        ("jsonl", "application/x-ndjson"),
        ("ndjson", "application/x-ndjson"),
        ("yaml", "application/yaml"),
        ("yml", "application/yaml"),
        ("toml", "application/toml"),
        ("tex", "application/x-tex"),
        ("rs", "text/x-rust"),
        ("py", "text/x-python"),
        ("js", "text/javascript"),
        ("go", "text/x-go"),
        ("vtt", "text/vtt"),
        ("eml", "message/rfc822"),
        ("mbox", "application/mbox"),
    ];
    const BY_NAME: [&str; 4] = ["text/plain", "application/json", "text/x-shellscript", "text/vtt"];
    if !BY_NAME.contains(&content.mime) {
        return content.mime.to_owned();
    }
    let extension = claims.name.as_deref().and_then(extension);
    if let Some((_, mime)) = FINER.iter().find(|(ext, _)| extension.as_deref() == Some(ext)) {
        return (*mime).to_owned();
    }
    let declared = claims.mime.as_deref().map(essence).unwrap_or_default();
    let finer = matches!(declared.as_str(), "text/html" | "message/rfc822")
        || FINER.iter().any(|(_, mime)| *mime == declared);
    if finer && content.mime == "text/plain" { declared } else { content.mime.to_owned() }
}

fn essence(mime: &str) -> String {
    mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn mime_family(mime: &str) -> Option<Family> {
    let mime = essence(mime);
    let exact = CLAIMS.iter().find(|(_, mimes, _)| mimes.contains(&mime.as_str()));
    // Entries that end in `/` or `.` stand for everything that begins so.
    let prefix = || {
        CLAIMS
            .iter()
            .find(|(_, mimes, _)| mimes.iter().any(|m| m.ends_with(['/', '.']) && mime.starts_with(m)))
    };
    exact.or_else(prefix).map(|(family, _, _)| *family)
}

fn extension(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next()?;
    let (stem, extension) = last.rsplit_once('.')?;
    (!stem.is_empty()).then(|| extension.to_ascii_lowercase())
}

fn extension_family(extension: &str) -> Option<Family> {
    CLAIMS.iter().find(|(_, _, extensions)| extensions.contains(&extension)).map(|(family, _, _)| *family)
}
