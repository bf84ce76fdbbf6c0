//! `multipart/form-data` (RFC 7578), read piece by piece as it comes: no part is ever held in memory as a whole.
//!
//! Not the crate multer (3.1.0), which axum takes: it appends to one buffer whatever its stream has ready, and looks for the end of a
//! part's head, and for the first boundary, without a bound but that of the whole body, so that a head of 1 GiB would be held in memory.

use memchr::memmem::{Finder, find};

/// The most bytes of a part's head.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// The most blanks between a boundary and the end of its line.
const MAX_PADDING_BYTES: usize = 64;

/// The longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY_BYTES: usize = 70;

/// What is wrong with a body: what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Takes what is in the parts, one after the other.
pub(super) trait Parts {
    /// Why it takes no more.
    type Refusal: From<Malformed>;

    /// A part of this name begins.
    fn begin(&mut self, name: &str) -> Result<(), Self::Refusal>;

    /// Some more of it.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Self::Refusal>;

    /// It ends.
    fn end(&mut self) -> Result<(), Self::Refusal>;
}

/// Where in a body the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first boundary: not of any part.
    Before,
    /// Behind a boundary, on its line.
    Boundary,
    /// In a part's head.
    Head,
    /// In a part.
    Part,
    /// Behind the last boundary: not of any part.
    After,
}

/// Reads a body.
#[derive(Debug)]
pub(super) struct Reader {
    /// A line's end, two dashes and the boundary.
    delimiter: Finder<'static>,
    place: Place,
    /// What has come and is not told yet.
    unread: Vec<u8>,
}

impl Reader {
    /// Reads a body whose parts are separated by `boundary`.
    pub(super) fn new(boundary: &str) -> Self {
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first boundary stands at the beginning, as if a line had ended there.
        Self {
            delimiter: Finder::new(&delimiter).into_owned(),
            place: Place::Before,
            unread: b"\r\n".to_vec(),
        }
    }

    /// Takes the next bytes of the body, and tells `parts` what they are.
    ///
    /// # Errors
    /// What `parts` refuses; [`Malformed`] if the bytes are no such body.
    pub(super) fn feed<P: Parts>(&mut self, bytes: &[u8], parts: &mut P) -> Result<(), P::Refusal> {
        if self.place == Place::After {
            return Ok(());
        }
        self.unread.extend_from_slice(bytes);
        let mut read = 0;
        while let Some(more) = self.step(read, parts)? {
            read += more;
        }
        self.unread.drain(..read);
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// [`Malformed`] if it broke off.
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        match self.place {
            Place::After => Ok(()),
            Place::Before => Err(Malformed("a body that begins with the boundary of its Content-Type")),
            _ => Err(Malformed("a last boundary, with two dashes behind it, at the end of the body")),
        }
    }

    /// Reads on from `from`, as far as one step goes: how many bytes that were, or nothing if more have to come first.
    fn step<P: Parts>(&mut self, from: usize, parts: &mut P) -> Result<Option<usize>, P::Refusal> {
        let unread = &self.unread[from..];
        let length = self.delimiter.needle().len();
        match self.place {
            Place::Before | Place::Part => {
                let is_part = self.place == Place::Part;
                let found = self.delimiter.find(unread);
                // Its last bytes may be the first of a boundary.
                let told = found.unwrap_or(unread.len().saturating_sub(length - 1));
                if is_part && told > 0 {
                    parts.take(&unread[..told])?;
                }
                if found.is_none() {
                    return Ok((told > 0).then_some(told));
                }
                if is_part {
                    parts.end()?;
                }
                self.place = Place::Boundary;
                Ok(Some(told + length))
            }
            Place::Boundary => {
                if unread.len() < 2 {
                    return Ok(None);
                }
                if unread.starts_with(b"--") {
                    self.place = Place::After;
                    return Ok(Some(unread.len()));
                }
                let blanks = unread.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
                let rest = &unread[blanks..];
                if rest.starts_with(b"\r\n") {
                    // The end of this line is left: with the next one it may be that of an empty head.
                    self.place = Place::Head;
                    return Ok(Some(blanks));
                }
                if blanks <= MAX_PADDING_BYTES && (rest.is_empty() || rest == b"\r") {
                    return Ok(None);
                }
                Err(Malformed("a line's end behind each boundary").into())
            }
            Place::Head => {
                let Some(end) = find(unread, b"\r\n\r\n") else {
                    if unread.len() > MAX_HEAD_BYTES {
                        return Err(Malformed("heads of parts of at most 8 KiB").into());
                    }
                    return Ok(None);
                };
                if end > MAX_HEAD_BYTES {
                    return Err(Malformed("heads of parts of at most 8 KiB").into());
                }
                let name = part_name(&unread[..end])?;
                parts.begin(&name)?;
                self.place = Place::Part;
                Ok(Some(end + 4))
            }
            Place::After => Ok(None),
        }
    }
}

/// The name of the part with this head. What the client calls its file is of no moment.
fn part_name(head: &[u8]) -> Result<String, Malformed> {
    let head = std::str::from_utf8(head).map_err(|_| Malformed("heads of parts in UTF-8"))?;
    let mut name = None;
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        let (header, value) = line.split_once(':').ok_or(Malformed("headers of parts as `name: value`"))?;
        match header.to_ascii_lowercase().as_str() {
            "content-disposition" => {
                let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
                if !kind.trim().eq_ignore_ascii_case("form-data") || name.is_some() {
                    return Err(Malformed("one `Content-Disposition: form-data` of each part"));
                }
                let found = parameter(parameters, "name")?;
                name = Some(found.ok_or(Malformed("a name in the Content-Disposition of each part"))?);
            }
            "content-transfer-encoding" => {
                let plain = ["binary", "8bit", "7bit"];
                if !plain.contains(&value.trim().to_ascii_lowercase().as_str()) {
                    return Err(Malformed("parts without transfer encoding"));
                }
            }
            _ => {}
        }
    }
    name.ok_or(Malformed("a Content-Disposition of each part"))
}

/// The boundary that a `Content-Type` names, if it is that of a form.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary").ok()??;
    let is_of_it = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=MAX_BOUNDARY_BYTES).contains(&boundary.len())
        && boundary.bytes().all(is_of_it)
        && !boundary.ends_with(' ');
    fits.then_some(boundary)
}

/// The parameter `wanted` among `parameters`, such as `name="a"; filename="b"`.
fn parameter(parameters: &str, wanted: &str) -> Result<Option<String>, Malformed> {
    const EXPECTED: Malformed = Malformed("parameters as `name=\"value\"`, each once");
    let mut rest = parameters.trim();
    let mut found = None;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(EXPECTED)?;
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next().ok_or(EXPECTED)? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(characters.next().ok_or(EXPECTED)?.1),
                    (_, other) => value.push(other),
                }
            };
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = after.find(';').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        if name.trim().eq_ignore_ascii_case(wanted) && found.replace(value).is_some() {
            return Err(EXPECTED);
        }
        rest = match rest.strip_prefix(';') {
            Some(next) => next.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(EXPECTED),
        };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use scoregate_model::random::Random;

    use super::*;

    #[derive(Default)]
    struct Collected(Vec<(String, Vec<u8>, bool)>);

    impl Parts for Collected {
        type Refusal = Malformed;

        fn begin(&mut self, name: &str) -> Result<(), Malformed> {
            self.0.push((name.into(), Vec::new(), false));
            Ok(())
        }

        fn take(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
            self.0.last_mut().unwrap().1.extend_from_slice(bytes);
            Ok(())
        }

        fn end(&mut self) -> Result<(), Malformed> {
            self.0.last_mut().unwrap().2 = true;
            Ok(())
        }
    }

    /// The body's parts, read in pieces of `size` bytes.
    fn read(body: &[u8], size: usize) -> Result<Vec<(String, Vec<u8>)>, Malformed> {
        let (mut reader, mut parts) = (Reader::new("XyZ"), Collected::default());
        for piece in body.chunks(size) {
            reader.feed(piece, &mut parts)?;
        }
        reader.finish()?;
        assert!(parts.0.iter().all(|(_, _, ended)| *ended));
        Ok(parts.0.into_iter().map(|(name, bytes, _)| (name, bytes)).collect())
    }

    #[test]
    fn parts_come_out_as_they_went_in_however_they_are_cut() {
        let nearly = b"\r\n--XyY\r\n-\r\n--Xy\r\n--\r\n".to_vec();
        let body = [
            b"--XyZ\r\nContent-Disposition: form-data; name=\"model\"; filename=\"../../a;b.onnx\"\r\n"
                .as_slice(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            &nearly,
            b"\r\n--XyZ \t\r\ncontent-disposition:form-data;name=version\r\n\r\n2026-11-23_01",
            b"\r\n--XyZ\r\nContent-Disposition: form-data; name=\"em\\\"pty\"\r\n\r\n",
            b"\r\n--XyZ--\r\nnothing of this counts --XyZ",
        ]
        .concat();
        let expected: Vec<(String, Vec<u8>)> = vec![
            ("model".into(), nearly),
            ("version".into(), b"2026-11-23_01".to_vec()),
            ("em\"pty".into(), Vec::new()),
        ];
        for size in 1..=body.len() {
            assert_eq!(read(&body, size).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let head = "Content-Disposition: form-data; name=\"a\"\r\n\r\n";
        let long = format!("--XyZ\r\nX: {}\r\n\r\nx\r\n--XyZ--", "x".repeat(9_000));
        for (body, what) in [
            ("", "nothing"),
            ("no boundary at all", "no boundary"),
            (&format!("--XyZ\r\n{head}text"), "broken off"),
            (&format!("--XyZ\r\n{head}text\r\n--XyZ"), "broken off at a boundary"),
            (&format!("--XyZ\r\n{head}text\r\n--XyZ-"), "broken off in the last boundary"),
            (&format!("--XyZq\r\n{head}text\r\n--XyZ--"), "a longer boundary"),
            ("--XyZ\r\n\r\ntext\r\n--XyZ--", "no head"),
            ("--XyZ\r\nContent-Type: a/b\r\n\r\ntext\r\n--XyZ--", "no disposition"),
            ("--XyZ\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XyZ--", "no name"),
            ("--XyZ\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--XyZ--", "no form"),
            ("--XyZ\r\nContent-Disposition: form-data; name=a; name=b\r\n\r\nx\r\n--XyZ--", "two names"),
            ("--XyZ\r\nContent-Disposition: form-data; name=\"a\r\n\r\nx\r\n--XyZ--", "an open quotation"),
            ("--XyZ\r\nno header\r\n\r\nx\r\n--XyZ--", "no header"),
            (
                "--XyZ\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--XyZ--",
                "encoded",
            ),
            (&long, "a long head"),
        ] {
            for size in [1, 7, 100_000] {
                assert!(read(body.as_bytes(), size).is_err(), "{what}");
            }
        }
    }

    /// Bytes of which forms are made, put together by chance: most of them are no form.
    fn scramble(random: &mut Random) -> Vec<u8> {
        const PIECES: [&[u8]; 14] = [
            b"--XyZ",
            b"\r\n",
            b"\r\n\r\n",
            b"--",
            b"-",
            b"\r",
            b" \t",
            b"Content-Disposition: form-data; name=\"a\"",
            b"Content-Disposition: form-data; name=",
            b"Content-Transfer-Encoding: base64",
            b"\"",
            b"\\",
            b"\xff\0",
            b"text",
        ];
        // Half of them begin well.
        let begin: &[u8] = match random.below(2) {
            0 => b"",
            _ => b"--XyZ\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n",
        };
        let pieces = (0..random.below(24)).map(|_| PIECES[random.below(PIECES.len())]);
        [begin].into_iter().chain(pieces).collect::<Vec<_>>().concat()
    }

    #[test]
    fn whatever_comes_is_read_alike_however_it_is_cut_and_what_goes_in_comes_out() {
        let mut random = Random::new(9, "forms");
        let (mut forms, mut others) = (0, 0);
        for _ in 0..20_000 {
            let scrambled = scramble(&mut random);
            let whole = read(&scrambled, scrambled.len().max(1));
            let cut = read(&scrambled, 1 + random.below(9));
            assert_eq!(whole, cut, "{}", scrambled.escape_ascii());
            // The same bytes as a part's: whatever they are, unless the boundary is among them.
            let body = [
                b"--XyZ\r\nContent-Disposition: form-data; name=\"part\"\r\n\r\n",
                scrambled.as_slice(),
                b"\r\n--XyZ--",
            ]
            .concat();
            if find(&[b"\r\n", scrambled.as_slice()].concat(), b"\r\n--XyZ").is_none() {
                let expected = Ok(vec![("part".to_owned(), scrambled)]);
                assert_eq!(read(&body, 1 + random.below(9)), expected, "{}", body.escape_ascii());
            }
            *(if whole.is_ok() { &mut forms } else { &mut others }) += 1;
        }
        assert!(forms > 100 && others > 1_000, "{forms} forms, {others} others");
    }

    #[test]
    fn little_is_kept_of_whatever_comes() {
        let head = b"--XyZ\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n";
        for begin in [&b""[..], b"--XyZ", b"--XyZ\r\n", head] {
            for filling in [&b"x"[..], b"\r\n", b"\r\n--Xy", b" "] {
                let (mut reader, mut parts) = (Reader::new("XyZ"), Nobody);
                let mut fed = reader.feed(begin, &mut parts);
                let piece = filling.repeat(16 * 1024 / filling.len());
                for _ in 0..64 {
                    fed = fed.and_then(|()| reader.feed(&piece, &mut parts));
                    assert!(reader.unread.len() <= piece.len() + MAX_HEAD_BYTES, "{}", reader.unread.len());
                }
            }
        }
    }

    /// Takes parts and keeps nothing of them.
    struct Nobody;

    impl Parts for Nobody {
        type Refusal = Malformed;

        fn begin(&mut self, _: &str) -> Result<(), Malformed> {
            Ok(())
        }

        fn take(&mut self, _: &[u8]) -> Result<(), Malformed> {
            Ok(())
        }

        fn end(&mut self) -> Result<(), Malformed> {
            Ok(())
        }
    }

    #[test]
    fn boundaries_are_told_by_the_content_type() {
        for (text, expected) in [
            ("multipart/form-data; boundary=XyZ", Some("XyZ")),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"a b'(c)\"", Some("a b'(c)")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"a \"", None),
            ("multipart/form-data; boundary=a\"b", None),
            ("multipart/mixed; boundary=XyZ", None),
            ("application/json; boundary=XyZ", None),
            ("multipart/form-data; boundary=a; boundary=b", None),
        ] {
            assert_eq!(boundary(text).as_deref(), expected, "{text}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "b".repeat(71))), None);
    }
}
