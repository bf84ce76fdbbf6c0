//! Seeded random numbers whose sequence no dependency's upgrade changes.
//!
//! Splits, bootstrap intervals and simulated data are part of published results, so that the step from random bits to
//! numbers is written out here; only the bits come from a library, and ChaCha8's are fixed by its specification.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A seeded source of random numbers. The same seed gives the same sequence on every platform.
#[derive(Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// A source for `purpose`: two purposes under one seed draw independent sequences, so that drawing more for one
    /// leaves the other as it was.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a turns the purpose into the number of a ChaCha stream.
        let stream = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut bits = ChaCha8Rng::seed_from_u64(seed);
        bits.set_stream(stream);
        Self(bits)
    }

    /// A uniform number in [0, 1) with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// A uniform whole number below `bound`; 0 if `bound` is 0. The bias of the multiplication is below `bound`/2⁶⁴.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A standard normal number (Box and Muller 1958, the cosine branch alone).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Puts `items` into a uniformly random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_pinned() {
        let mut random = Random::new(42, "test");
        let drawn: Vec<usize> = (0..8).map(|_| random.below(1000)).collect();
        assert_eq!(drawn, [857, 638, 884, 682, 830, 0, 812, 184], "published splits would change");
    }

    #[test]
    fn purposes_are_independent() {
        assert_ne!(Random::new(1, "split").below(usize::MAX), Random::new(1, "bootstrap").below(usize::MAX));
        assert_eq!(Random::new(1, "split").below(usize::MAX), Random::new(1, "split").below(usize::MAX));
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = Random::new(7, "moments");
        let n = 100_000;
        let uniform: Vec<f64> = (0..n).map(|_| random.uniform()).collect();
        let normal: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance =
            |values: &[f64]| mean(&values.iter().map(|x| x * x).collect::<Vec<_>>()) - mean(values).powi(2);
        // Five standard errors of each.
        assert!((mean(&uniform) - 0.5).abs() < 0.005);
        assert!((variance(&uniform) - 1.0 / 12.0).abs() < 0.002);
        assert!(mean(&normal).abs() < 0.016);
        assert!((variance(&normal) - 1.0).abs() < 0.023);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();
        Random::new(3, "shuffle").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
