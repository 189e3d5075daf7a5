//! Which of a PDF's textless pages are pictures, and not simply empty.

use xberg_native_pdf::PdfDocument;

/// The pages among `blank` (numbered from 1) that show an image.
///
/// The images are looked up, not decoded. A page that cannot be looked at counts as a
/// picture: better to say that something may be missing than that all is there.
pub(super) fn pictured(bytes: Vec<u8>, blank: &[u32]) -> Vec<u32> {
    if blank.is_empty() {
        return Vec::new();
    }
    let Ok(document) = PdfDocument::from_bytes(bytes) else {
        return blank.to_vec();
    };
    let is_pictured = |number: &u32| {
        document.page_image_handles(*number as usize - 1).map_or(true, |images| !images.is_empty())
    };
    blank.iter().copied().filter(is_pictured).collect()
}
