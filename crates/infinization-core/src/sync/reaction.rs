//! What an event, a run state or a pidfile means. Pure.

use crate::qmp::{EventKind, RunState, StatusInfo};
use crate::vm::status::{Status, UNTOUCHABLE, of_run_state};

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It is told; the status stays.
    Tell,
    /// The status becomes this.
    Becomes(Status),
    /// It does not say why: `query-status` does.
    Ask,
    /// The machine ends.
    Ends,
    /// It is none of the events that are told.
    Ignore,
}

/// POWERDOWN is only the button: a guest may ignore it.
pub(super) fn of_event(kind: &EventKind) -> Reaction {
    match kind {
        EventKind::Shutdown { .. } => Reaction::Ends,
        EventKind::Powerdown | EventKind::Reset { .. } => Reaction::Tell,
        EventKind::Stop | EventKind::Resume => Reaction::Ask,
        EventKind::Suspend => Reaction::Becomes(Status::Suspended),
        EventKind::Wakeup => Reaction::Becomes(Status::Running),
        _ => Reaction::Ignore,
    }
}

/// What a running QEMU's own word means. `running` wins over it. A guest that is stopped while its
/// state is saved comes back by itself: `error` would stay.
pub(super) fn of_status(status: &StatusInfo) -> Reaction {
    if status.running {
        return Reaction::Becomes(Status::Running);
    }
    match &status.status {
        RunState::SaveVm => Reaction::Becomes(Status::Suspended),
        state => match of_run_state(state.as_str()) {
            Status::Off => Reaction::Ends,
            status => Reaction::Becomes(status),
        },
    }
}

/// Whether a derived status may be written over this one.
pub(super) fn is_claimed(status: &str) -> bool {
    UNTOUCHABLE.contains(&status) || matches!(Status::parse(status), Status::Marker(_))
}

/// What a pidfile with a living process behind it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphan {
    /// The row's own process, or one that comes or goes.
    No,
    /// Nobody can want it.
    Unwanted,
    /// Told, and left alone.
    Reported,
}

/// `status` and `recorded` are the row's, if there is one; `before` says whether the last scan saw
/// the process too.
pub(super) fn of_pid_file(
    status: Option<&str>,
    recorded: Option<i32>,
    pid: i32,
    before: bool,
) -> Orphan {
    const BETWEEN: [&str; 4] = [
        "starting",
        "powering_off_update",
        "rebuilding",
        "updating_hardware",
    ];
    match status {
        None => Orphan::Unwanted,
        Some(status) if BETWEEN.contains(&status) => Orphan::No,
        Some("off") if before => Orphan::Unwanted,
        Some("off") => Orphan::Reported,
        Some(_) if recorded == Some(pid) => Orphan::No,
        Some(_) => Orphan::Reported,
    }
}

/// The statuses that a status settled out of `listed` is not written over.
pub(super) fn guard_beside(listed: &str) -> Vec<&'static str> {
    let guard = UNTOUCHABLE.iter().copied();
    guard.filter(|status| *status != listed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::ShutdownCause;

    fn status(running: bool, state: &str) -> StatusInfo {
        let text = format!(r#"{{"running":{running},"status":"{state}"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn only_a_shutdown_ends_a_machine() {
        let shutdown = EventKind::Shutdown {
            guest: true,
            reason: ShutdownCause::GuestShutdown,
        };
        let reset = EventKind::Reset {
            guest: false,
            reason: ShutdownCause::HostQmpSystemReset,
        };
        for (kind, reaction) in [
            (shutdown, Reaction::Ends),
            (EventKind::Powerdown, Reaction::Tell),
            (reset, Reaction::Tell),
            (EventKind::Stop, Reaction::Ask),
            (EventKind::Resume, Reaction::Ask),
            (EventKind::Suspend, Reaction::Becomes(Status::Suspended)),
            (EventKind::Wakeup, Reaction::Becomes(Status::Running)),
            (EventKind::Other, Reaction::Ignore),
        ] {
            assert_eq!(of_event(&kind), reaction, "{kind:?}");
        }
    }

    #[test]
    fn every_run_state_is_followed() {
        let becomes = Reaction::Becomes;
        for (state, reaction) in [
            ("running", becomes(Status::Running)),
            ("paused", becomes(Status::Suspended)),
            ("shutdown", Reaction::Ends),
            ("inmigrate", becomes(Status::Starting)),
            ("postmigrate", becomes(Status::Suspended)),
            ("prelaunch", becomes(Status::Starting)),
            ("finish-migrate", becomes(Status::Suspended)),
            ("restore-vm", becomes(Status::Starting)),
            ("suspended", becomes(Status::Suspended)),
            ("watchdog", becomes(Status::Error)),
            ("guest-panicked", becomes(Status::Error)),
            ("io-error", becomes(Status::Error)),
            ("colo", becomes(Status::Running)),
            ("debug", becomes(Status::Error)),
            ("internal-error", becomes(Status::Error)),
            ("save-vm", becomes(Status::Suspended)),
            ("levitating", becomes(Status::Error)),
        ] {
            assert_eq!(of_status(&status(false, state)), reaction, "{state}");
            let running = of_status(&status(true, state));
            assert_eq!(running, becomes(Status::Running), "{state}");
        }
    }

    #[test]
    fn only_a_qemu_that_nobody_can_want_is_unwanted() {
        let (pid, other) = (Some(7), Some(8));
        for (status, recorded, before, orphan) in [
            (None, None, false, Orphan::Unwanted),
            (Some("off"), None, false, Orphan::Reported),
            (Some("off"), None, true, Orphan::Unwanted),
            (Some("off"), pid, true, Orphan::Unwanted),
            (Some("running"), pid, true, Orphan::No),
            (Some("running"), other, true, Orphan::Reported),
            (Some("running"), None, true, Orphan::Reported),
            (Some("suspended"), pid, true, Orphan::No),
            (Some("paused"), other, true, Orphan::Reported),
            (Some("error"), None, true, Orphan::Reported),
            (Some("backing_up"), None, true, Orphan::Reported),
            (Some("backing_up"), pid, true, Orphan::No),
            (Some("archived"), None, true, Orphan::Reported),
            (Some("starting"), None, true, Orphan::No),
            (Some("powering_off_update"), other, true, Orphan::No),
            (Some("rebuilding"), None, true, Orphan::No),
            (Some("updating_hardware"), None, true, Orphan::No),
        ] {
            let found = of_pid_file(status, recorded, 7, before);
            assert_eq!(found, orphan, "{status:?} {recorded:?} {before}");
        }
    }

    #[test]
    fn a_settled_row_is_written_over_what_it_was_listed_with_only() {
        assert!(!guard_beside("rebuilding").contains(&"rebuilding"));
        assert!(guard_beside("rebuilding").contains(&"error"));
        assert!(guard_beside("starting").contains(&"rebuilding"));
        assert!(is_claimed("error") && is_claimed("backing_up") && !is_claimed("off"));
    }
}
