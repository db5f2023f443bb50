//! As much of the answer to ListObjectsV2 as it takes to leave objects out of it.

const OBJECT: (&str, &str) = ("<Contents>", "</Contents>");
const KEY: (&str, &str) = ("<Key>", "</Key>");

/// The key that a request's target names: behind the bucket, decoded.
pub(super) fn key_of(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let (_, key) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or_default();
    let mut bytes = Vec::new();
    let mut rest = key.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The keys of the objects in a listing.
pub(super) fn keys(listing: &[u8]) -> Vec<String> {
    let mut keys = Vec::new();
    without(listing, |key| {
        keys.push(key.to_owned());
        false
    });
    keys
}

/// A listing without the objects whose keys are left out.
pub(super) fn without(listing: &[u8], mut is_left_out: impl FnMut(&str) -> bool) -> Vec<u8> {
    let text = String::from_utf8_lossy(listing);
    let (mut kept, mut rest) = (String::new(), text.as_ref());
    while let Some((before, from)) = rest.split_once(OBJECT.0) {
        let (object, behind) = from.split_once(OBJECT.1).unwrap_or((from, ""));
        kept += before;
        let key = object
            .split_once(KEY.0)
            .and_then(|(_, key)| key.split_once(KEY.1));
        if !key.is_some_and(|(key, _)| is_left_out(key)) {
            kept += &[OBJECT.0, object, OBJECT.1].concat();
        }
        rest = behind;
    }
    (kept + rest).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_left_out_and_the_rest_stays() {
        let listing =
            b"<List><KeyCount>2</KeyCount><Contents><Key>pre fix/a</Key><Size>1</Size></Contents>\
            <Contents><Key>pre fix/b</Key></Contents><CommonPrefixes/></List>";
        assert_eq!(keys(listing), ["pre fix/a", "pre fix/b"]);
        assert_eq!(without(listing, |_| false), listing);
        let left = without(listing, |key| key == key_of("/bucket/pre%20fix/a"));
        assert_eq!(
            String::from_utf8(left).expect("text"),
            "<List><KeyCount>2</KeyCount><Contents><Key>pre fix/b</Key></Contents><CommonPrefixes/></List>"
        );
    }
}
