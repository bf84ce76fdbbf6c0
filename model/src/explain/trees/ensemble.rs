//! An ensemble of trees in this project's own form, evaluated in double precision.

use std::collections::HashSet;

use super::{Error, Matrix};

/// What a graph rounds a row's numbers to before it compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// To float32: inputs of float32, and of integers, which are compared with float32 thresholds.
    Single,
    /// Not at all.
    Double,
}

/// What the graph's node makes of the margins, each by itself or all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The margins are the answer.
    Identity,
    /// A sigmoid of each: margins are log-odds.
    Logistic,
    /// The softmax of all.
    Softmax,
}

/// How the columns of the node's answer follow from the margins `m`, before [`Link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// One column per margin.
    Each,
    /// Two columns of one margin: `-m` and `m`.
    Opposite,
    /// Two columns of one margin: `1 - m` and `m`.
    Complement,
}

/// What a node asks of a value. A missing one answers as IEEE 754 says: yes to [`Test::Differs`], else no.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Test {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    Above(f64),
    Equals(f64),
    Differs(f64),
    OneOf(Vec<f64>),
}

impl Test {
    fn holds(&self, value: f64) -> bool {
        match self {
            Self::AtMost(threshold) => value <= *threshold,
            Self::Below(threshold) => value < *threshold,
            Self::AtLeast(threshold) => value >= *threshold,
            Self::Above(threshold) => value > *threshold,
            Self::Equals(threshold) => value == *threshold,
            Self::Differs(threshold) => value != *threshold,
            Self::OneOf(members) => members.contains(&value),
        }
    }

    /// The numbers that the test compares with.
    pub(super) fn thresholds(&self) -> &[f64] {
        match self {
            Self::AtMost(threshold)
            | Self::Below(threshold)
            | Self::AtLeast(threshold)
            | Self::Above(threshold)
            | Self::Equals(threshold)
            | Self::Differs(threshold) => std::slice::from_ref(threshold),
            Self::OneOf(members) => members,
        }
    }
}

/// Where a branch leads: positions among all nodes or all leaves of the ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Node(u32),
    Leaf(u32),
}

/// One decision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) column: u32,
    pub(super) test: Test,
    /// Whether a missing value takes the true branch whatever the test says.
    pub(super) missing: bool,
    pub(super) yes: Next,
    pub(super) no: Next,
}

impl Node {
    /// Whether a value takes the true branch, as ONNX Runtime decides.
    pub(super) fn holds(&self, value: f64) -> bool {
        self.test.holds(value) || (self.missing && value.is_nan())
    }
}

/// The sum of trees over the columns of an encoded row: one margin per output.
///
/// The margin is what comes before the node's own post-transform; see [`Ensemble::link`] and [`Ensemble::answer`].
#[derive(Debug, Clone, PartialEq)]
pub struct Ensemble {
    pub(super) precision: Precision,
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<Next>,
    /// Where the weights of each leaf end; those of the first begin at 0.
    pub(super) ends: Vec<u32>,
    /// Output, and what the leaf adds to it.
    pub(super) weights: Vec<(u32, f64)>,
    /// What every row begins with, one number per output.
    pub(super) base: Vec<f64>,
    pub(super) link: Link,
    pub(super) columns: Columns,
}

impl Ensemble {
    /// Number of margins.
    pub fn outputs(&self) -> usize {
        self.base.len()
    }

    /// Number of trees.
    pub fn trees(&self) -> usize {
        self.roots.len()
    }

    /// Number of leaves of all trees.
    pub fn leaves(&self) -> usize {
        self.ends.len()
    }

    /// How many columns a row has at least: those up to the last one that is asked for.
    pub fn width(&self) -> usize {
        self.nodes.iter().map(|node| node.column as usize + 1).max().unwrap_or(0)
    }

    /// What rows are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What the node makes of the margins.
    pub fn link(&self) -> Link {
        self.link
    }

    /// How the columns of the node's answer follow from the margins.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// The one margin that is the outputs' sum with these weights, plus a constant; it is as it is, without a link.
    ///
    /// # Panics
    /// If there is not one weight per output.
    #[must_use]
    pub fn combine(mut self, weights: &[f64], constant: f64) -> Self {
        assert_eq!(weights.len(), self.outputs(), "one weight per output");
        let mut start = 0;
        let mut sums = Vec::with_capacity(self.ends.len());
        for end in &mut self.ends {
            let of_leaf = &self.weights[start..*end as usize];
            start = *end as usize;
            let sum: f64 = of_leaf.iter().map(|(output, weight)| weights[*output as usize] * weight).sum();
            sums.push((0, sum));
            *end = u32::try_from(sums.len()).unwrap_or(u32::MAX);
        }
        let base = self.base.iter().zip(weights).map(|(base, weight)| base * weight).sum::<f64>();
        Self {
            weights: sums,
            base: vec![constant + base],
            link: Link::Identity,
            columns: Columns::Each,
            ..self
        }
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let members = self.nodes.iter().map(|node| match &node.test {
            Test::OneOf(members) => size_of_val(members.as_slice()),
            _ => 0,
        });
        size_of_val(self.nodes.as_slice())
            + members.sum::<usize>()
            + size_of_val(self.roots.as_slice())
            + size_of_val(self.ends.as_slice())
            + size_of_val(self.weights.as_slice())
            + size_of_val(self.base.as_slice())
    }

    /// The columns that any tree asks for.
    pub fn columns_used(&self) -> HashSet<usize> {
        self.nodes.iter().map(|node| node.column as usize).collect()
    }

    /// The value of a column as the graph compares it.
    #[expect(clippy::cast_possible_truncation, reason = "the graph rounds as well")]
    pub(super) fn rounded(&self, value: f64) -> f64 {
        match self.precision {
            Precision::Single => f64::from(value as f32),
            Precision::Double => value,
        }
    }

    /// What a leaf adds, by output.
    pub(super) fn of_leaf(&self, leaf: u32) -> &[(u32, f64)] {
        let leaf = leaf as usize;
        let start = leaf.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.weights[start as usize..self.ends[leaf] as usize]
    }

    /// Writes a row's margins, one per output, into `margins`, all in double precision.
    ///
    /// # Panics
    /// If the row has fewer columns than [`Ensemble::width`], or `margins` another length than [`Ensemble::outputs`].
    pub fn margin(&self, row: &[f64], margins: &mut [f64]) {
        assert_eq!(margins.len(), self.outputs(), "one margin per output");
        margins.copy_from_slice(&self.base);
        for root in &self.roots {
            let mut at = *root;
            loop {
                match at {
                    Next::Node(node) => {
                        let node = &self.nodes[node as usize];
                        let holds = node.holds(self.rounded(row[node.column as usize]));
                        at = if holds { node.yes } else { node.no };
                    }
                    Next::Leaf(leaf) => {
                        for (output, weight) in self.of_leaf(leaf) {
                            margins[*output as usize] += weight;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// The node's answer for a row: its margins, put in columns and sent through the link.
    ///
    /// # Panics
    /// If the row has fewer columns than [`Ensemble::width`].
    pub fn answer(&self, row: &[f64]) -> Vec<f64> {
        let mut margins = vec![0.0; self.outputs()];
        self.margin(row, &mut margins);
        let columns = match self.columns {
            Columns::Each => margins,
            Columns::Opposite => vec![-margins[0], margins[0]],
            Columns::Complement => vec![1.0 - margins[0], margins[0]],
        };
        match self.link {
            Link::Identity => columns,
            Link::Logistic => columns.iter().map(|margin| 1.0 / (1.0 + (-margin).exp())).collect(),
            Link::Softmax => {
                let most = columns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = columns.iter().map(|margin| (margin - most).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.iter().map(|power| power / sum).collect()
            }
        }
    }

    /// For each node, how many of the rows take its true and its false branch.
    ///
    /// # Errors
    /// [`Error::Width`] if rows are narrower than [`Ensemble::width`].
    pub fn covers(&self, rows: &Matrix<'_>) -> Result<Vec<[u64; 2]>, Error> {
        self.check_width(rows.columns())?;
        let mut covers = vec![[0, 0]; self.nodes.len()];
        for row in rows.rows() {
            for root in &self.roots {
                let mut at = *root;
                while let Next::Node(found) = at {
                    let node = &self.nodes[found as usize];
                    let holds = node.holds(self.rounded(row[node.column as usize]));
                    covers[found as usize][usize::from(!holds)] += 1;
                    at = if holds { node.yes } else { node.no };
                }
            }
        }
        Ok(covers)
    }

    /// For each node, how many of the rows take its true and its false branch, if `covers` takes the true ones: what is left of
    /// those that get to it takes the other.
    pub(super) fn both_covers(&self, covers: &[u64], rows: u64) -> Result<Vec<[u64; 2]>, Error> {
        if covers.len() != self.nodes.len() {
            return Err(Error::Covers { found: covers.len(), expected: self.nodes.len() });
        }
        let mut both = vec![[0, 0]; self.nodes.len()];
        let mut open: Vec<(Next, u64)> = self.roots.iter().map(|root| (*root, rows)).collect();
        while let Some((next, rows)) = open.pop() {
            let Next::Node(at) = next else { continue };
            let (node, yes) = (at as usize, covers[at as usize]);
            let no = rows.checked_sub(yes).ok_or(Error::Cover { node, found: yes, expected: rows })?;
            both[node] = [yes, no];
            open.extend([(self.nodes[node].yes, yes), (self.nodes[node].no, no)]);
        }
        Ok(both)
    }

    pub(super) fn check_width(&self, found: usize) -> Result<(), Error> {
        let expected = self.width();
        if found < expected { Err(Error::Width { found, expected }) } else { Ok(()) }
    }
}
