//! The status column: the library's words, the consumer's markers, and what QEMU's run states mean.
//!
//! Pure. The column is a free string that the consumer also writes; [`Status::Marker`] is a claim
//! of his that this library never overwrites, starts or reaps.

use std::fmt;

/// A value of the status column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No QEMU.
    Off,
    /// QEMU is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's CPUs are stopped, or it sleeps (S3).
    Suspended,
    /// An older word for suspended.
    Paused,
    /// The consumer changes the hardware.
    UpdatingHardware,
    /// The guest shuts down so that its hardware can be changed.
    PoweringOffUpdate,
    /// The consumer rebuilds the machine; reconciling resolves it.
    Rebuilding,
    /// It failed; only a start leaves this status.
    Error,
    /// Not one of ours: the consumer's claim on the row.
    Marker(String),
}

impl Status {
    /// Reads the column. Unknown words are markers.
    pub fn parse(text: &str) -> Self {
        match text {
            "off" => Self::Off,
            "starting" => Self::Starting,
            "running" => Self::Running,
            "suspended" => Self::Suspended,
            "paused" => Self::Paused,
            "updating_hardware" => Self::UpdatingHardware,
            "powering_off_update" => Self::PoweringOffUpdate,
            "rebuilding" => Self::Rebuilding,
            "error" => Self::Error,
            other => Self::Marker(other.to_owned()),
        }
    }

    /// The column's text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::UpdatingHardware => "updating_hardware",
            Self::PoweringOffUpdate => "powering_off_update",
            Self::Rebuilding => "rebuilding",
            Self::Error => "error",
            Self::Marker(text) => text,
        }
    }

    /// Whether a status with a living QEMU is what the row should show.
    pub fn expects_process(&self) -> bool {
        matches!(self, Self::Running | Self::Suspended | Self::Paused)
    }

    /// Whether the row of a living QEMU must not stay so: nobody claims it, and no start leaves it.
    pub fn denies_process(&self) -> bool {
        matches!(self, Self::Off | Self::Starting)
    }

    /// Whether it is the consumer's claim on the row.
    pub fn is_claim(&self) -> bool {
        matches!(self, Self::Rebuilding | Self::Marker(_))
    }

    /// Whether it says the same as `other`: there are two words for a guest that stands still.
    pub fn means(&self, other: &Self) -> bool {
        let one = |status: &Self| match status {
            Self::Paused => Self::Suspended,
            status => status.clone(),
        };
        one(self) == one(other)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The statuses a start may leave.
pub const STARTABLE: [&str; 2] = ["off", "error"];

/// The consumer's claims on a row: the library never writes over them.
pub const MARKERS: [&str; 9] = [
    "rebuilding",
    "deleting",
    "moving",
    "backing_up",
    "restoring",
    "snapshotting",
    "capturing",
    "archived",
    "delete_failed",
];

/// What is not written over either when a guest ends or changes by itself: `error` is final until a
/// start.
pub const UNTOUCHABLE: [&str; MARKERS.len() + 1] = {
    let mut all = ["error"; MARKERS.len() + 1];
    let mut at = 0;
    while at < MARKERS.len() {
        all[at] = MARKERS[at];
        at += 1;
    }
    all
};

/// What is written over when a guest ends or changes by itself. Whatever else the column says, a word
/// that nobody knows included, stays.
pub const FOLLOWED: [&str; 7] = [
    "off",
    "starting",
    "running",
    "suspended",
    "paused",
    "updating_hardware",
    "powering_off_update",
];

/// What a verb writes over: `error` too.
pub const OURS: [&str; FOLLOWED.len() + 1] = {
    let mut all = ["error"; FOLLOWED.len() + 1];
    let mut at = 0;
    while at < FOLLOWED.len() {
        all[at] = FOLLOWED[at];
        at += 1;
    }
    all
};

/// What QEMU's run state (`query-status`) means for the column. Unknown states are errors.
///
/// `running` on a resync wins over the word, which is the caller's to decide.
pub fn of_run_state(run_state: &str) -> Status {
    match run_state {
        "running" | "colo" => Status::Running,
        "paused" | "postmigrate" | "finish-migrate" | "suspended" => Status::Suspended,
        "shutdown" => Status::Off,
        "inmigrate" | "prelaunch" | "restore-vm" => Status::Starting,
        _ => Status::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_run_state_has_its_status() {
        let table = [
            ("running", "running"),
            ("paused", "suspended"),
            ("shutdown", "off"),
            ("inmigrate", "starting"),
            ("postmigrate", "suspended"),
            ("prelaunch", "starting"),
            ("finish-migrate", "suspended"),
            ("restore-vm", "starting"),
            ("suspended", "suspended"),
            ("watchdog", "error"),
            ("guest-panicked", "error"),
            ("io-error", "error"),
            ("colo", "running"),
            ("future-state", "error"),
        ];
        for (run_state, status) in table {
            assert_eq!(of_run_state(run_state).as_str(), status, "{run_state}");
        }
    }

    #[test]
    fn every_known_word_is_written_over_or_spared() {
        let known = crate::db::KNOWN_STATUSES;
        assert_eq!(known.len(), FOLLOWED.len() + UNTOUCHABLE.len());
        for word in known {
            let (followed, spared) = (FOLLOWED.contains(&word), UNTOUCHABLE.contains(&word));
            assert_ne!(followed, spared, "{word}");
            assert_eq!(OURS.contains(&word), !MARKERS.contains(&word), "{word}");
        }
    }

    #[test]
    fn unknown_words_stay_as_they_are() {
        assert_eq!(Status::parse("backing_up").as_str(), "backing_up");
        assert!(matches!(Status::parse("backing_up"), Status::Marker(_)));
    }
}
