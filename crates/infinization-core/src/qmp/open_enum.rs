//! Enums over strings that QEMU may extend: an unknown value is kept, never refused.

/// Declares such an enum with its wire spellings; it reads and writes as a plain JSON string.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $wire:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $(#[doc = concat!("QEMU's `", $wire, "`.")] $variant,)*
            /// A value this version does not know, as it was spelled; empty where none was given.
            Other(String),
        }

        impl $name {
            /// The spelling on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $wire,)*
                    Self::Other(spelling) => spelling,
                }
            }
        }

        impl From<String> for $name {
            fn from(spelling: String) -> Self {
                match spelling.as_str() {
                    $($wire => Self::$variant,)*
                    _ => Self::Other(spelling),
                }
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::Other(String::new())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use open_enum;
