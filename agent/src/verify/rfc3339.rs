//! Core: moments as RFC 3339 writes them.

use attest::UnixSeconds;

/// A text is not a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a moment like 2026-11-24T12:00:00Z")]
pub(super) struct TimeError;

/// Parses `2026-11-24T12:00:00Z`, with fractions (which are dropped) and offsets.
pub(super) fn parse(text: &str) -> Result<UnixSeconds, TimeError> {
    let (date, rest) = text.split_at_checked(10).ok_or(TimeError)?;
    let rest = rest.strip_prefix(['T', 't', ' ']).ok_or(TimeError)?;
    let (clock, rest) = rest.split_at_checked(8).ok_or(TimeError)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let length = days_of_month(year, month).ok_or(TimeError)?;
    // A leap second counts as the first one of the next minute.
    if !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Err(TimeError);
    }
    let offset = parse_offset(without_fraction(rest)?)?;
    let days = days_since_1970(year, month, day);
    Ok(UnixSeconds(
        days * 86_400 + hour * 3_600 + minute * 60 + second - offset,
    ))
}

/// Three numbers of fixed widths, with a separator between.
fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Result<[i64; 3], TimeError> {
    let parts: Vec<&str> = text.split(separator).collect();
    let parts: [&str; 3] = parts.try_into().map_err(|_| TimeError)?;
    let mut numbers = [0; 3];
    for ((number, part), width) in numbers.iter_mut().zip(parts).zip(widths) {
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TimeError);
        }
        *number = part.parse().map_err(|_| TimeError)?;
    }
    Ok(numbers)
}

fn without_fraction(text: &str) -> Result<&str, TimeError> {
    let Some(fraction) = text.strip_prefix('.') else {
        return Ok(text);
    };
    let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() == fraction.len() {
        Err(TimeError)
    } else {
        Ok(rest)
    }
}

/// Seconds that the local time is ahead of UTC.
fn parse_offset(text: &str) -> Result<i64, TimeError> {
    let (sign, offset) = match text.as_bytes().first() {
        Some(b'Z' | b'z') if text.len() == 1 => return Ok(0),
        Some(b'+') => (1, text.get(1..)),
        Some(b'-') => (-1, text.get(1..)),
        _ => return Err(TimeError),
    };
    let offset = offset.ok_or(TimeError)?;
    let [hours, minutes, _] = numbers(&format!("{offset}:00"), ':', [2, 2, 2])?;
    if hours > 23 || minutes > 59 {
        return Err(TimeError);
    }
    Ok(sign * (hours * 3_600 + minutes * 60))
}

fn days_of_month(year: i64, month: i64) -> Option<i64> {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(if leap { 29 } else { 28 }),
        _ => None,
    }
}

/// Days of the proleptic Gregorian calendar. Years start with March, so that the leap day is the
/// last of its year and months have a regular length.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Result<i64, TimeError>) {
        assert_eq!(parse(text).map(|at| at.0), want, "{text}");
    }

    /// Computed with GNU date.
    #[test]
    fn moments_are_counted_from_1970() {
        check("1970-01-01T00:00:00Z", Ok(0));
        check("2026-11-24T21:55:40Z", Ok(1_795_557_340));
        check("2000-02-29T23:59:59Z", Ok(951_868_799));
        check("2100-03-01T00:00:00Z", Ok(4_107_542_400));
        check("1969-12-31T23:59:59Z", Ok(-1));
        check("0000-01-01T00:00:00Z", Ok(-62_167_219_200));
        check("9999-12-31T23:59:59Z", Ok(253_402_300_799));
    }

    #[test]
    fn offsets_fractions_and_other_spellings_are_read() {
        check("2026-11-24T23:25:40+01:30", Ok(1_795_557_340));
        check("2026-11-24T13:55:40-08:00", Ok(1_795_557_340));
        check("2026-11-24t21:55:40.999z", Ok(1_795_557_340));
        check("2026-11-24 21:55:40Z", Ok(1_795_557_340));
        check("2016-12-31T23:59:60Z", Ok(1_483_228_800));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T21:55:40",
            "2026-11-24T21:55Z",
            "2026-1-24T21:55:40Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T00:60:00Z",
            "2026-11-24T00:00:61Z",
            "2026-11-24T00:00:00.Z",
            "2026-11-24T00:00:00+1:00",
            "2026-11-24T00:00:00+24:00",
            "2026-11-24T00:00:00Zz",
            "+026-11-24T00:00:00Z",
            "2026-11-24T00:00:é0Z",
        ] {
            check(bad, Err(TimeError));
        }
    }
}
