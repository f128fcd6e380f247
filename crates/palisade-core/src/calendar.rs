//! The calendar's name for a number of seconds, in UTC.

/// A second of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// From 1970 on.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
    /// 0 to 23.
    pub hour: u64,
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 59; the Unix clock knows no leap seconds.
    pub second: u64,
}

impl Moment {
    /// So many seconds after the Unix epoch.
    pub fn at(time_s: u64) -> Self {
        let (days, second) = (time_s / 86_400, time_s % 86_400);
        // Days since 0000-03-01, so that the leap day is the last of its year.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self { year, month, day, hour: second / 3600, minute: second / 60 % 60, second: second % 60 }
    }

    /// `2026-11-23T04:05:06`, as RFC 3339 begins: what follows is a fraction, if there is one, and the zone.
    pub fn date_and_time(&self) -> String {
        let Self { year, month, day, hour, minute, second } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

/// Seconds since the Unix epoch as RFC 3339 has them: `2026-11-23T04:05:06Z`.
pub fn rfc3339(time_s: u64) -> String {
    Moment::at(time_s).date_and_time() + "Z"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        // date -u -d @… +%FT%TZ
        let known = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (time_s, date) in known {
            assert_eq!(rfc3339(time_s), format!("{date}T00:00:00Z"));
        }
        assert_eq!(rfc3339(1_795_406_706), "2026-11-23T04:05:06Z");
    }
}
