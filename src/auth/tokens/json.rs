//! JSON objects from strangers: bounded in depth, width and number of values, no name twice, texts borrowed where they can be.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// How many objects and lists may lie within each other.
const MAX_DEPTH: usize = 16;
/// The most members of one object. Names are compared with one another, so that this also bounds the work.
const MAX_MEMBERS: usize = 128;
/// The most values of one document: each takes more memory than its text, down to the two bytes of an empty object.
const MAX_VALUES: usize = 16_384;
/// How many members the outermost object has room for at once: as many as a token has. Those within begin with none.
const USUAL_MEMBERS: usize = 12;

/// Any value.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::auth) enum Value<'t> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number. Beyond 2^53 it is rounded, which no claim minds.
    Number(f64),
    /// A string.
    Text(Cow<'t, str>),
    /// An array.
    List(Vec<Value<'t>>),
    /// An object.
    Object(Object<'t>),
}

impl<'t> Value<'t> {
    /// The string that it is.
    pub(in crate::auth) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The strings of an array that holds nothing else.
    pub(in crate::auth) fn texts(&self) -> Option<Vec<&str>> {
        if let Self::List(list) = self { list.iter().map(Self::text).collect() } else { None }
    }
}

/// An object; its members in the order in which they came.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::auth) struct Object<'t>(Vec<(Cow<'t, str>, Value<'t>)>);

impl<'t> Object<'t> {
    /// Reads `text`, which has to be one object and nothing more.
    pub(in crate::auth) fn parse(text: &'t [u8]) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(std::str::from_utf8(text).ok()?);
        let left = Cell::new(MAX_VALUES);
        let reader = Reader { depth: 0, left: &left };
        let value = reader.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        if let Value::Object(object) = value { Some(object) } else { None }
    }

    /// The member called `name`.
    pub(in crate::auth) fn get(&self, name: &str) -> Option<&Value<'t>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// How many members there are.
    pub(in crate::auth) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Reads a value.
struct Reader<'l> {
    /// Within how many others it lies.
    depth: usize,
    /// How many values there may still be.
    left: &'l Cell<usize>,
}

impl Reader<'_> {
    fn below<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom("nested too deep"));
        }
        Ok(Self { depth: self.depth + 1, left: self.left })
    }
}

impl<'t> DeserializeSeed<'t> for Reader<'_> {
    type Value = Value<'t>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Value<'t>, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

#[expect(clippy::cast_precision_loss, reason = "see Value::Number")]
impl<'t> Visitor<'t> for Reader<'_> {
    type Value = Value<'t>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value<'t>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'t>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'t>, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'t>, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'t>, E> {
        Ok(Value::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'t str) -> Result<Value<'t>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'t>, E> {
        Ok(Value::Text(Cow::Owned(value.into())))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut items: A) -> Result<Value<'t>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.below()?)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut members: A) -> Result<Value<'t>, A::Error> {
        let room = if self.depth == 0 { USUAL_MEMBERS } else { 0 };
        let mut object: Vec<(Cow<'t, str>, Value<'t>)> = Vec::with_capacity(room);
        while let Some(name) = members.next_key_seed(Name)? {
            if object.len() == MAX_MEMBERS || object.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom("too many members, or one of them twice"));
            }
            let value = members.next_value_seed(self.below()?)?;
            object.push((name, value));
        }
        Ok(Value::Object(Object(object)))
    }
}

/// Reads a member's name.
struct Name;

impl<'t> DeserializeSeed<'t> for Name {
    type Value = Cow<'t, str>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Cow<'t, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'t> Visitor<'t> for Name {
    type Value = Cow<'t, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'t str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Owned(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_and_what_is_ambiguous_is_not() {
        let object = Object::parse(br#" {"a":1,"b":[true,null,"x"],"c":{"d":"\u0065"},"n":-2.5} "#).unwrap();
        assert_eq!(object.get("a"), Some(&Value::Number(1.0)));
        assert_eq!(object.get("n"), Some(&Value::Number(-2.5)));
        let list = vec![Value::Bool(true), Value::Null, Value::Text("x".into())];
        assert_eq!(object.get("b"), Some(&Value::List(list)));
        let Some(Value::Object(inner)) = object.get("c") else { panic!("{object:?}") };
        assert_eq!((inner.get("d").and_then(Value::text), inner.len(), inner.get("a")), (Some("e"), 1, None));

        let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let wide = |members: usize| {
            let members: Vec<String> = (0..members).map(|member| format!("\"{member}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(Object::parse(deep(MAX_DEPTH - 1).as_bytes()).is_some());
        assert!(Object::parse(wide(MAX_MEMBERS).as_bytes()).is_some());
        let many = |values: usize| format!("{{\"a\":[{}]}}", vec!["{}"; values].join(","));
        // The object itself and its list are values too.
        let most = many(MAX_VALUES - 2);
        let most = Object::parse(most.as_bytes()).unwrap();
        let Some(Value::List(list)) = most.get("a") else { panic!("no list") };
        assert_eq!(list.len(), MAX_VALUES - 2);
        for item in list {
            let Value::Object(Object(members)) = item else { panic!("{item:?}") };
            assert_eq!(members.capacity(), 0, "memory for nothing");
        }
        for (what, text) in [
            ("empty", String::new()),
            ("no object", "[]".into()),
            ("no JSON", "{a}".into()),
            ("a comma too many", r#"{"a":1,}"#.into()),
            ("two documents", "{}{}".into()),
            ("trailing bytes", "{}x".into()),
            ("a byte order mark", "\u{feff}{}".into()),
            ("a name twice", r#"{"a":1,"a":1}"#.into()),
            ("a name twice, spelt differently", r#"{"a":1,"\u0061":1}"#.into()),
            ("a name twice within", r#"{"a":{"b":1,"b":2}}"#.into()),
            ("a number beyond all bounds", r#"{"a":1e400}"#.into()),
            ("a lone surrogate", r#"{"a":"\ud800"}"#.into()),
            ("too deep", deep(MAX_DEPTH)),
            ("much too deep", deep(100_000)),
            ("too wide", wide(MAX_MEMBERS + 1)),
            ("too many values", many(MAX_VALUES - 1)),
        ] {
            assert_eq!(Object::parse(text.as_bytes()), None, "{what}");
        }
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}"), None, "no UTF-8");
    }
}
