//! A set of ports, as a bitmap that prints as ranges.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Ports 0 to 65535, each in or out.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl PortSet {
    /// Every port that a packet can be sent to, 1 to 65535.
    pub fn all() -> Self {
        (1..=u16::MAX).collect()
    }
    /// Puts a port in.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    /// Whether a port is in.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port >> 6)] & 1 << (port & 63) != 0
    }
    /// How many are in.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
    /// None is in.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
    /// Those that are in, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }
    /// Those that are in this one and not in the other.
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= !other);
        rest
    }
    /// Puts in all of the other one.
    pub fn extend_from(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word |= other);
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

/// Ranges: `22,80-90`, or `none`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ports = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ports.next() {
            let mut last = first;
            while let Some(next) = ports.next_if(|next| u32::from(*next) == u32::from(last) + 1) {
                last = next;
            }
            f.write_str(separator)?;
            match last == first {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
            separator = ",";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom(format!("`{text}` is not a list of port ranges"));
        let mut set = Self::default();
        for range in text.split(',').filter(|range| *range != "none") {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse::<u16>().map_err(|_| wrong())?);
            (first..=last).for_each(|port| set.insert(port));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_printed_and_read() {
        let set: PortSet = [22, 80, 81, 82, 65535].into_iter().collect();
        assert_eq!(set.to_string(), "22,80-82,65535");
        assert_eq!(serde_json::from_str::<PortSet>("\"22,80-82,65535\"").unwrap(), set);
        assert_eq!(PortSet::default().to_string(), "none");
        assert!(serde_json::from_str::<PortSet>("\"x\"").is_err());
        assert_eq!(PortSet::all().to_string(), "1-65535");
        assert_eq!(PortSet::all().minus(&set).len(), 65530);
    }
}
