use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use std::path::PathBuf;
use std::process::Command;

const TEXT: &[u8] = b"sk-test-ABCDEF0123456789";
/// What Node 20 wrote with a key of 32 bytes 7: IV, ciphertext, tag.
const NODE: [(&[u8], &str, &str); 2] = [
    (&[9; 12], "54eea9e0db83b54ce120887ca3ac93eee68357c602d9cff9", "cd512124c1b3055ca5b7afeb636e1d76"),
    (&[9; 16], "b1e1a0410a05405a167a0afdf6641e5dee6582fbe0070531", "8e799ce75b29fefb5275a2133ae848c1"),
];

fn settings(keys: &[(&str, [u8; 32])], current: &str) -> config::Seal {
    config::Seal {
        current: current.into(),
        unnamed: String::new(),
        file: PathBuf::new(),
        keys: keys.iter().map(|(id, key)| ((*id).to_owned(), hex::encode(key).into())).collect(),
    }
}

fn keys() -> Keys {
    Keys::open(&settings(&[("k1", [7; 32])], "")).unwrap()
}

fn legacy(ciphertext: &str, iv: &str, auth_tag: &str) -> Sealed {
    Sealed { ciphertext: ciphertext.into(), iv: iv.into(), auth_tag: auth_tag.into(), key_id: None }
}

#[test]
fn what_node_wrote_opens_in_hex_and_base64_with_both_lengths_of_iv() {
    for (iv, ciphertext, tag) in NODE {
        let raw = |hexed: &str| hex::decode(hexed).unwrap();
        let rows = [
            legacy(ciphertext, &hex::encode(iv), tag),
            legacy(&ciphertext.to_uppercase(), &hex::encode(iv), tag),
            legacy(&STANDARD.encode(raw(ciphertext)), &STANDARD.encode(iv), &STANDARD.encode(raw(tag))),
            legacy(&URL_SAFE.encode(raw(ciphertext)), &URL_SAFE.encode(iv), &URL_SAFE.encode(raw(tag))),
            legacy(
                &STANDARD_NO_PAD.encode(raw(ciphertext)),
                &STANDARD_NO_PAD.encode(iv),
                &STANDARD_NO_PAD.encode(raw(tag)),
            ),
            // Each column in its own way.
            legacy(ciphertext, &STANDARD.encode(iv), tag),
            legacy(&format!("k1:{ciphertext}"), &hex::encode(iv), tag),
        ];
        for row in rows {
            let plain = keys().open_sealed(&row, b"any row").unwrap();
            assert_eq!(plain.expose_secret(), TEXT);
            assert!(keys().is_stale(&row), "bound to no row, so it is to be sealed anew");
        }
    }
}

/// A base64 text of hex letters alone: 16 characters are 12 bytes in base64 and 8 in hex.
#[test]
fn base64_that_looks_like_hex_is_read_by_its_neighbours() {
    let iv: [u8; 12] = STANDARD.decode("abcdefABCDEF0123").unwrap().try_into().unwrap();
    let aes: AesGcm<Aes256, U12> = AesGcm::new_from_slice(&[7; 32]).unwrap();
    let mut bytes = TEXT.to_vec();
    let tag = aes.encrypt_inout_detached(&Nonce::from(iv), b"", bytes.as_mut_slice().into()).unwrap();
    let row = legacy(&STANDARD.encode(&bytes), "abcdefABCDEF0123", &STANDARD.encode(tag));
    assert_eq!(keys().open_sealed(&row, b"").unwrap().expose_secret(), TEXT);
}

#[test]
fn short_tags_are_refused_however_they_are_written() {
    let (iv, ciphertext, tag) = NODE[0];
    for bytes in [4, 8, 12, 15] {
        let short = &hex::decode(tag).unwrap()[..bytes];
        for written in [hex::encode(short), STANDARD.encode(short)] {
            let wrong = keys().open_sealed(&legacy(ciphertext, &hex::encode(iv), &written), b"").unwrap_err();
            assert!(matches!(wrong, SealError::Tag { bytes: n } if n == bytes), "{written}: {wrong}");
        }
    }
    let wrong = keys().open_sealed(&legacy(ciphertext, &hex::encode([9; 8]), tag), b"").unwrap_err();
    assert!(matches!(wrong, SealError::Iv { bytes: 8 }), "{wrong}");
    let wrong = keys().open_sealed(&legacy("%%", "%%", tag), b"").unwrap_err();
    assert!(matches!(wrong, SealError::Encoding { column: "ciphertext" }), "{wrong}");
}

#[test]
fn another_row_another_key_and_changed_bytes_do_not_open_and_the_error_says_nothing() {
    let ours = keys();
    let sealed = ours.seal(TEXT, b"row 1").unwrap();
    assert_eq!(ours.open_sealed(&sealed, b"row 1").unwrap().expose_secret(), TEXT);
    assert!(!ours.is_stale(&sealed));
    let mut wrongs = vec![ours.open_sealed(&sealed, b"row 2").unwrap_err()];
    wrongs.push(ours.open_sealed(&sealed, b"").unwrap_err());
    let other = Keys::open(&settings(&[("k1", [8; 32])], "")).unwrap();
    wrongs.push(other.open_sealed(&sealed, b"row 1").unwrap_err());
    let none = Keys::open(&settings(&[("k2", [7; 32])], "")).unwrap();
    wrongs.push(none.open_sealed(&sealed, b"row 1").unwrap_err());
    let mut flipped = sealed.clone();
    flipped.ciphertext.replace_range(0..1, if sealed.ciphertext.starts_with('0') { "1" } else { "0" });
    wrongs.push(ours.open_sealed(&flipped, b"row 1").unwrap_err());
    // What was bound to a row stays bound: taking its key's id away makes it no legacy row.
    let unnamed = Sealed { key_id: None, ..sealed.clone() };
    wrongs.push(ours.open_sealed(&unnamed, b"row 2").unwrap_err());
    wrongs.push(
        ours.open_sealed(&Sealed { key_id: Some("k9".into()), ..sealed.clone() }, b"row 1").unwrap_err(),
    );
    for wrong in wrongs {
        let (shown, debugged) = (wrong.to_string(), format!("{wrong:?} {sealed:?} {ours:?}"));
        assert!(!shown.contains("sk-test") && !debugged.contains("sk-test"), "{shown}");
        assert!(!debugged.contains(&sealed.ciphertext) && !debugged.contains(&hex::encode([7; 32])));
    }
}

#[test]
fn each_seal_has_an_iv_of_its_own() {
    let keys = keys();
    let ivs: std::collections::HashSet<_> = (0..100).map(|_| keys.seal(TEXT, b"row").unwrap().iv).collect();
    assert_eq!(ivs.len(), 100);
}

#[test]
fn rotation_opens_what_older_keys_sealed_and_seals_with_the_current_one() {
    let old = keys().seal(TEXT, b"row").unwrap();
    let both = Keys::open(&settings(&[("k1", [7; 32]), ("k2", [8; 32])], "k2")).unwrap();
    assert!(both.is_stale(&old));
    let plain = both.open_sealed(&old, b"row").unwrap();
    let new = both.seal(plain.expose_secret(), b"row").unwrap();
    assert_eq!((new.key_id.as_deref(), both.is_stale(&new)), (Some("k2"), false));
    let after = Keys::open(&settings(&[("k2", [8; 32])], "")).unwrap();
    assert_eq!(after.open_sealed(&new, b"row").unwrap().expose_secret(), TEXT);
    assert!(matches!(after.open_sealed(&old, b"row"), Err(SealError::UnknownKey { .. })));
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_reason() {
    let wrong = |settings: config::Seal| Keys::open(&settings).unwrap_err().to_string();
    assert!(wrong(settings(&[("k1", [7; 32]), ("k2", [8; 32])], "")).contains("seal.current"));
    assert!(wrong(settings(&[("k1", [7; 32])], "k3")).contains("k3"));
    let mut short = settings(&[("k1", [7; 32])], "");
    short.keys.insert("k1".into(), "c2hvcnQta2V5".into());
    let said = wrong(short);
    assert!(said.contains("32 bytes") && !said.contains("c2hvcnQta2V5"), "{said}");
    let none = Keys::open(&settings(&[], "")).unwrap();
    assert!(matches!(none.seal(TEXT, b""), Err(SealError::NoKey)));
}

#[cfg(unix)]
#[test]
fn the_key_file_is_made_once_and_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/seal.key");
    let with_file = || config::Seal { file: file.clone(), ..settings(&[], "") };
    let sealed = Keys::open(&with_file()).unwrap().seal(TEXT, b"row").unwrap();
    assert_eq!(sealed.key_id.as_deref(), Some("local"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Keys::open(&with_file()).unwrap();
    assert_eq!(again.open_sealed(&sealed, b"row").unwrap().expose_secret(), TEXT);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Keys::open(&with_file()).unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn what_this_machines_node_seals_opens_here() {
    let script = r"
        const c = require('node:crypto'), key = Buffer.alloc(32, 7), rows = [];
        for (const size of [12, 16]) for (const form of ['hex', 'base64']) for (let n = 0; n < 50; n++) {
            const iv = c.randomBytes(size), aes = c.createCipheriv('aes-256-gcm', key, iv);
            const body = Buffer.concat([aes.update(`sk-${size}-${form}-${n}`), aes.final()]);
            rows.push([body, iv, aes.getAuthTag()].map(b => b.toString(form)).concat(`sk-${size}-${form}-${n}`));
        }
        console.log(JSON.stringify(rows));";
    let Ok(output) = Command::new("node").args(["-e", script]).output() else {
        eprintln!("skipped: no node on this machine");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<[String; 4]> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), 200);
    for [ciphertext, iv, tag, plain] in rows {
        let opened = keys().open_sealed(&legacy(&ciphertext, &iv, &tag), b"row").unwrap();
        assert_eq!(opened.expose_secret(), plain.as_bytes());
    }
}
