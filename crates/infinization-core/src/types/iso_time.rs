//! Points in time as text.

/// `HH:MM:SS.mmm`; more than a day goes on counting hours.
pub(crate) fn clock(seconds: u64, millis: u32) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60)
}

/// ISO 8601, UTC, of seconds since 1970 in the proleptic Gregorian calendar. Days are counted from 0000-03-01, so
/// that the leap day is a year's last ("Euclidean affine functions", Neri and Schneider 2021).
pub(crate) fn iso_date(seconds: i64, millis: u32) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let clock = clock(second.unsigned_abs(), millis);
    format!("{year:04}-{month:02}-{day:02}T{clock}Z")
}

/// The same of milliseconds since 1970.
pub(crate) fn iso_date_ms(millis: u64) -> String {
    let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
    let rest = u32::try_from(millis % 1000).unwrap_or_default();
    iso_date(seconds, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(iso_date(seconds, 0), date);
        }
    }
}
