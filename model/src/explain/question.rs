//! What is asked of an explainer, before and after what is left open was decided.

use super::explanation::{Method, Space};

/// Classes that a refusal names at most.
const NAMED: usize = 20;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// What values are to add up on; the model's own margin if absent, else the answer itself.
    pub space: Option<Space>,
    /// How they are to be computed; as costs least if absent.
    pub method: Option<Method>,
    /// The label of the class that is to be explained: the positive one if absent, of several the most likely.
    pub class: Option<String>,
}

/// Why a question cannot be answered for a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The space is not one of the model's.
    #[error("this model is not explained in the space {found}, expected {expected}")]
    Space {
        /// What was asked for.
        found: &'static str,
        /// What there is.
        expected: String,
    },
    /// The method does not take the model.
    #[error("the method {found} does not take this model, or not in this space, expected {expected}")]
    Method {
        /// What was asked for.
        found: &'static str,
        /// What there is.
        expected: String,
    },
    /// The model has no such class.
    #[error("the model has no such class, expected {expected}")]
    Class {
        /// Those that it has, or some of them.
        expected: String,
    },
}

impl Refusal {
    /// Of a class that is none of `labels`.
    pub(super) fn of_class(labels: &[String]) -> Self {
        let expected = match labels {
            [] => "no class: the model answers values".into(),
            few if few.len() <= NAMED => few.join(", "),
            many => format!("{}, … ({} classes)", many[..NAMED].join(", "), many.len()),
        };
        Self::Class { expected }
    }
}

/// A question with everything that it left open decided, but for what depends on the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub(super) space: Space,
    /// With all the time there is.
    pub(super) method: Method,
    pub(super) class: Option<usize>,
}

impl Ask {
    /// How, with all the time there is.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What is asked for, in bytes: two questions of one version have the same ones only if they are the same.
    pub fn bytes(&self) -> [u8; 6] {
        let [a, b, c, d] = self.class.map_or(u32::MAX, |class| class as u32).to_le_bytes();
        [self.space as u8, self.method as u8, a, b, c, d]
    }
}
