//! What a run of `nft -j` prints, object by object.
//!
//! The table of a hundred machines is megabytes. They are written to a file in memory and read from there piece by piece:
//! what this process' allocator had to take for them would stay with it, in pieces that the system cannot have back.

use std::fmt;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::NftError;
use crate::host::memory_file::MemoryFile;

/// More than any answer of a kernel comes near.
const ROOM: u64 = 64 * 1024 * 1024;

/// What `nft` printed: one document after the other.
#[derive(Debug)]
pub(super) struct Printed(MemoryFile);

impl Printed {
    /// Nothing yet, and where `nft` is to print to.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let file = MemoryFile::with_room("nft", ROOM)?;
        let writer = file.writer()?;
        Ok((Self(file), writer))
    }

    /// The objects of all documents, one at a time; a change without echo prints none.
    pub(super) fn each(&self, mut take: impl FnMut(Value)) -> Result<(), NftError> {
        let mut said = serde_json::Deserializer::from_reader(BufReader::new(self.0.reader(0)));
        while said.end().is_err() {
            let document = Document(&mut take).deserialize(&mut said);
            document.map_err(NftError::Answer)?;
        }
        Ok(())
    }
}

/// Gives away the objects of a document's `nftables`.
struct Document<'a, Take>(&'a mut Take);

impl<'de, Take: FnMut(Value)> DeserializeSeed<'de> for Document<'_, Take> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, document: D) -> Result<(), D::Error> {
        document.deserialize_map(self)
    }
}

impl<'de, Take: FnMut(Value)> Visitor<'de> for Document<'_, Take> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `nftables`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            if name == "nftables" {
                members.next_value_seed(Objects(&mut *self.0))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Gives away the objects of a list.
struct Objects<'a, Take>(&'a mut Take);

impl<'de, Take: FnMut(Value)> DeserializeSeed<'de> for Objects<'_, Take> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de, Take: FnMut(Value)> Visitor<'de> for Objects<'_, Take> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<(), A::Error> {
        while let Some(object) = objects.next_element()? {
            (self.0)(object);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    fn said(words: &str) -> Result<Vec<Value>, NftError> {
        let (printed, writer) = Printed::new().unwrap();
        let mut nft = File::from(writer);
        nft.write_all(words.as_bytes()).unwrap();
        let mut objects = Vec::new();
        printed.each(|object| objects.push(object))?;
        Ok(objects)
    }

    #[test]
    fn all_documents_are_read_and_each_to_its_end() {
        assert_eq!(said("").unwrap(), Vec::<Value>::new());
        let two = "{\"nftables\": [1, {\"a\": [2]}], \"other\": [3]}\n {} {\"nftables\": [4]}\n";
        let objects = [1.into(), serde_json::json!({ "a": [2] }), 4.into()];
        assert_eq!(said(two).unwrap(), objects);
    }

    #[test]
    fn what_is_cut_off_or_none_of_its_words_is_an_error() {
        for words in ["{\"nftables\": [1, ", "{\"nftables\": 1}", "nft", "{} ]"] {
            let error = said(words).unwrap_err();
            assert!(matches!(error, NftError::Answer(_)), "{words}: {error:?}");
        }
    }
}
