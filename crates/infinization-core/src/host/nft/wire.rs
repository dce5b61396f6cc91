//! nfnetlink's messages, as bytes: those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`. Pure.

pub(super) const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
pub(super) const SUBSYS_NFTABLES: u16 = 10;
pub(super) const FAMILY_BRIDGE: u8 = 7;
const NESTED: u16 = 1 << 15;
/// `nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// `nlmsghdr` and `nfgenmsg`.
pub(super) const GENERIC_HEADER: usize = 20;

/// `NLM_F_*`.
pub(super) mod flags {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const ACK: u16 = 4;
    pub(in super::super) const ECHO: u16 = 8;
    pub(in super::super) const EXCL: u16 = 0x200;
    pub(in super::super) const CREATE: u16 = 0x400;
    pub(in super::super) const APPEND: u16 = 0x800;
}

/// `NFT_MSG_*`.
pub(super) mod kind {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const GET_TABLE: u16 = 1;
    pub(in super::super) const DELETE_TABLE: u16 = 2;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const DELETE_CHAIN: u16 = 5;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const DELETE_RULE: u16 = 8;
    pub(in super::super) const NEW_SET: u16 = 9;
    pub(in super::super) const NEW_ELEMENTS: u16 = 12;
    pub(in super::super) const DELETE_ELEMENTS: u16 = 14;
    pub(in super::super) const NEW_GENERATION: u16 = 15;
    pub(in super::super) const GET_GENERATION: u16 = 16;
}

/// One request about the table: what kind, with which flags beyond `NLM_F_REQUEST`, and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) attributes: Vec<u8>,
}

impl Request {
    pub(super) fn new(kind: u16, flags: u16, attributes: Vec<u8>) -> Self {
        Self {
            kind,
            flags,
            attributes,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let kind = (SUBSYS_NFTABLES << 8) + self.kind;
        message(
            kind,
            self.flags | flags::REQUEST,
            FAMILY_BRIDGE,
            0,
            &self.attributes,
        )
    }
}

/// Requests that are served together; the last one is acknowledged.
/// If they are for one state only, the kernel refuses them (`ERESTART`) in any other.
pub(super) fn batch(mut requests: Vec<Request>, generation: Option<u32>) -> Vec<u8> {
    if let Some(last) = requests.last_mut() {
        last.flags |= flags::ACK;
    }
    let limit = |kind, content: &[u8]| message(kind, flags::REQUEST, 0, SUBSYS_NFTABLES, content);
    // `NFNL_BATCH_GENID`.
    let expected = generation.map(|id| number(1, id)).unwrap_or_default();
    let mut batch = limit(BATCH_BEGIN, &expected);
    for request in &requests {
        batch.extend(request.bytes());
    }
    batch.extend(limit(BATCH_END, &[]));
    batch
}

/// `nlmsghdr`, `nfgenmsg`, attributes.
pub(super) fn message(
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(GENERIC_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: answers come in order, and the kernel fills the port in.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

pub(super) fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

pub(super) fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, content)
}

/// `nlattr`, padded to four bytes.
pub(super) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = 4 + content.len();
    let mut bytes = u16::try_from(length)
        .unwrap_or(u16::MAX)
        .to_ne_bytes()
        .to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// What the attribute of this kind holds.
pub(super) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & !NESTED;
        let content = attributes.get(4..length)?;
        if kind == wanted {
            return Some(content);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// The text that an attribute of this kind holds.
pub(super) fn find_text(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let text = find(attributes, wanted)?;
    Some(text.strip_suffix(&[0]).unwrap_or(text))
}

/// `NFTA_GEN_ID`: the number of nftables' state.
pub(super) fn generation(attributes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*find(attributes, 1)?.first_chunk()?))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_padded_and_its_length_is_not() {
        assert_eq!(
            attribute(2, b"abc"),
            [&7u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), b"abc\0"].concat()
        );
        assert_eq!(text(1, "abc").len(), 8);
        assert_eq!(nested(3, &[])[2..], (3u16 | 0x8000).to_ne_bytes());
        let both = [text(1, "a"), nested(2, &text(1, "b"))].concat();
        assert_eq!(find_text(find(&both, 2).unwrap(), 1), Some(&b"b"[..]));
        assert_eq!(find(&both, 3), None);
        assert_eq!(find(&[0; 8], 1), None, "one that has no end is none");
    }
}
