//! A handshake by hand, as far as a server's certificates: in TLS 1.2 and before they are sent in the clear (RFC 5246).
//!
//! Versions before 1.2 are spoken by no library of today; whether a server agrees to them is seen in its first answer.

/// Versions as they are written.
pub(super) const TLS_1_0: [u8; 2] = [3, 1];
pub(super) const TLS_1_1: [u8; 2] = [3, 2];
pub(super) const TLS_1_2: [u8; 2] = [3, 3];

/// What servers of any age may pick from, and the sign that renegotiation is safe (RFC 5746).
const CIPHER_SUITES: [u16; 30] = [
    0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc009, 0xc013, 0xc00a, 0xc014, 0xc023, 0xc027, 0x009e, 0x009f,
    0x0067, 0x006b, 0x0033, 0x0039, 0x009c, 0x009d, 0x003c, 0x003d, 0x002f, 0x0035, 0xc008, 0xc012, 0x0016, 0x000a,
    0x0005, 0x00ff,
];
const HANDSHAKE: u8 = 22;
/// Larger messages aren't collected.
const MESSAGE_BYTES_MAX: usize = 1 << 16;

/// A first message that offers nothing newer than this version.
pub(super) fn client_hello(version: [u8; 2], name: Option<&str>) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = name.filter(|name| name.parse::<std::net::IpAddr>().is_err()) {
        let entry = [&[0][..], &with_length(name.as_bytes())].concat();
        extensions.extend(extension(0, &with_length(&entry)));
    }
    // x25519, P-256, P-384, P-521; points uncompressed.
    extensions.extend(extension(10, &with_length(&[0, 29, 0, 23, 0, 24, 0, 25])));
    extensions.extend(extension(11, &[1, 0]));
    if version == TLS_1_2 {
        let schemes = [4, 3, 5, 3, 6, 3, 8, 4, 8, 5, 8, 6, 4, 1, 5, 1, 6, 1, 2, 3, 2, 1];
        extensions.extend(extension(13, &with_length(&schemes)));
    }
    let suites: Vec<u8> = CIPHER_SUITES.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let mut body = version.to_vec();
    // It keeps nothing secret: any bytes will do.
    body.extend([0x50; 32]);
    body.push(0);
    body.extend(with_length(&suites));
    body.extend([1, 0]);
    body.extend(with_length(&extensions));
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[HANDSHAKE, 3, 1][..], &with_length(&message)].concat()
}

/// Two bytes of length, and the bytes. Nothing here is longer.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &with_length(bytes)].concat()
}

/// What was understood so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Not enough yet.
    More,
    /// An alert, another version, or no TLS.
    Refused,
    /// These, the leaf first.
    Certificates(Vec<Vec<u8>>),
}

/// Takes a server's answer piece by piece.
pub(super) struct Reader {
    version: [u8; 2],
    records: Vec<u8>,
    messages: Vec<u8>,
    agreed: bool,
}

impl Reader {
    pub(super) fn new(version: [u8; 2]) -> Self {
        Self { version, records: Vec::new(), messages: Vec::new(), agreed: false }
    }

    /// The server has agreed to the version.
    pub(super) fn agreed(&self) -> bool {
        self.agreed
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Said {
        self.records.extend(bytes);
        while let [kind, 3, _, high, low, rest @ ..] = &self.records[..] {
            if *kind != HANDSHAKE {
                return Said::Refused;
            }
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some(record) = rest.get(..length) else { break };
            self.messages.extend(record);
            self.records.drain(..5 + length);
            if self.messages.len() > MESSAGE_BYTES_MAX {
                return Said::Refused;
            }
        }
        // The first bytes of something else.
        if self.records.len() >= 5 && !matches!(self.records[..2], [HANDSHAKE, 3]) {
            return Said::Refused;
        }
        self.understand()
    }

    fn understand(&mut self) -> Said {
        while let [kind, a, b, c, rest @ ..] = &self.messages[..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some(body) = rest.get(..length) else { break };
            match kind {
                // ServerHello
                2 if body.get(..2) == Some(&self.version) => self.agreed = true,
                // Certificate
                11 if self.agreed => return certificates(body).map_or(Said::Refused, Said::Certificates),
                _ => return Said::Refused,
            }
            self.messages.drain(..4 + length);
        }
        Said::More
    }
}

fn certificates(body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut rest, after) = part(body)?;
    if !after.is_empty() {
        return None;
    }
    let mut chain = Vec::new();
    while !rest.is_empty() && chain.len() < super::certificate::CHAIN_MAX {
        let (certificate, after) = part(rest)?;
        chain.push(certificate.to_vec());
        rest = after;
    }
    Some(chain)
}

/// Three bytes of length, and the bytes; and what follows.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [a, b, c, rest @ ..] = bytes else { return None };
    rest.split_at_checked(u32::from_be_bytes([0, *a, *b, *c]) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind, 3, 1][..], &with_length(bytes)].concat()
    }

    fn answer(version: [u8; 2]) -> Vec<u8> {
        let mut hello = vec![2, 0, 0, 38, version[0], version[1]];
        hello.extend([7; 36]);
        let certificate = [11, 0, 0, 12, 0, 0, 9, 0, 0, 2, 0x30, 0, 0, 0, 1, 0x31];
        [record(HANDSHAKE, &hello), record(HANDSHAKE, &certificate)].concat()
    }

    #[test]
    fn certificates_are_read_however_they_arrive() {
        let all = Said::Certificates(vec![vec![0x30, 0], vec![0x31]]);
        assert_eq!(Reader::new(TLS_1_0).take(&answer(TLS_1_0)), all);
        let mut reader = Reader::new(TLS_1_0);
        let bytes = answer(TLS_1_0);
        let said: Vec<Said> = bytes.iter().map(|byte| reader.take(&[*byte])).collect();
        assert!(said[..said.len() - 1].iter().all(|said| *said == Said::More));
        assert_eq!(said.last(), Some(&all));
    }

    #[test]
    fn who_picks_another_version_or_speaks_of_something_else_has_refused() {
        assert_eq!(Reader::new(TLS_1_0).take(&answer(TLS_1_2)), Said::Refused);
        assert_eq!(Reader::new(TLS_1_0).take(&record(21, &[2, 70])), Said::Refused);
        assert_eq!(Reader::new(TLS_1_0).take(b"SSH-2.0-OpenSSH_9.2\r\n"), Said::Refused);
        let lies = record(HANDSHAKE, &[11, 0xff, 0xff, 0xff]);
        assert_eq!(Reader::new(TLS_1_0).take(&lies), Said::More);
        let mut flooded = Reader::new(TLS_1_0);
        let many = record(HANDSHAKE, &[1; 16_000]);
        assert!((0..8).any(|_| flooded.take(&many) == Said::Refused));
    }

    #[test]
    fn a_name_is_sent_and_an_address_is_not() {
        let has = |name: &str, part: &str| {
            client_hello(TLS_1_2, Some(name)).windows(part.len()).any(|window| window == part.as_bytes())
        };
        assert!(has("shop.example", "shop.example") && !has("203.0.113.1", "203.0.113.1"));
    }
}
