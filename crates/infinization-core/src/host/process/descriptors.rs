//! Which descriptor a child has under which number: worked out before the clone, where memory may still be
//! allocated.

use std::os::fd::RawFd;

/// The child's descriptor table, worked out before the child exists.
///
/// Sources may have any number, also one that is another's target. So every source is first copied
/// above the highest target, then each copy goes to its place, and what lies between is closed.
#[derive(Debug)]
pub(super) struct DescriptorPlan {
    /// The first number above every target.
    pub(super) floor: RawFd,
    /// `(source, target)`; the child overwrites the source with its copy's number.
    pub(super) moves: Vec<(RawFd, RawFd)>,
    /// Ranges, both ends included, that are closed in the end.
    pub(super) closed: Vec<(u32, u32)>,
}

impl DescriptorPlan {
    /// Puts each source at its target; targets 0, 1 and 2 are among them. `Err` names a target that
    /// is negative or given twice.
    pub(super) fn new(moves: Vec<(RawFd, RawFd)>) -> Result<Self, RawFd> {
        let mut targets: Vec<RawFd> = moves.iter().map(|(_, target)| *target).collect();
        targets.sort_unstable();
        if let Some(twice) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(twice[0]);
        }
        let mut closed = Vec::new();
        let mut next = 0;
        for &target in &targets {
            let number = u32::try_from(target).map_err(|_| target)?;
            if number > next {
                closed.push((next, number - 1));
            }
            next = number + 1;
        }
        closed.push((next, u32::MAX));
        let floor = RawFd::try_from(next).map_err(|_| RawFd::MAX)?;
        Ok(Self {
            floor,
            moves,
            closed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_everything_that_is_not_a_target() {
        let plan = DescriptorPlan::new(vec![(9, 0), (9, 1), (8, 2), (3, 7), (7, 4)]).unwrap();
        assert_eq!(plan.closed, [(3, 3), (5, 6), (8, u32::MAX)]);
        assert_eq!(plan.floor, 8);
        let plan = DescriptorPlan::new(vec![(9, 2), (9, 0), (9, 1)]).unwrap();
        assert_eq!(plan.closed, [(3, u32::MAX)]);
    }

    #[test]
    fn refuses_a_target_that_is_taken_or_no_number() {
        assert_eq!(DescriptorPlan::new(vec![(5, 3), (6, 3)]).unwrap_err(), 3);
        assert_eq!(DescriptorPlan::new(vec![(5, -1)]).unwrap_err(), -1);
        assert!(DescriptorPlan::new(vec![(5, RawFd::MAX)]).is_err());
    }
}
