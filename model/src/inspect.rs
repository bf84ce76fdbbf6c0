//! Reading and rewriting graphs: what a graph computes that nobody asks for is cut before it is served.

use std::collections::HashSet;

use prost::Message;
use scoregate_schemas::onnx::ModelProto;

/// Why a graph cannot be read or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not an ONNX model.
    #[error("the file is not an ONNX model: {0}")]
    NotOnnx(#[from] prost::DecodeError),
    /// The model has no graph.
    #[error("the ONNX model has no graph")]
    NoGraph,
    /// The graph has no such output.
    #[error("the graph has no output \"{name}\"; it has {}", .outputs.join(", "))]
    NoOutput {
        /// The output that was asked for.
        name: String,
        /// The outputs that are there.
        outputs: Vec<String>,
    },
}

/// The same model with `output` as its only output and without the nodes that do not lead to it. Inputs stay.
///
/// # Errors
/// [`Error`] if the bytes are not an ONNX model with this output.
pub fn keep_output(bytes: &[u8], output: &str) -> Result<Vec<u8>, Error> {
    let mut model = ModelProto::decode(bytes)?;
    let graph = model.graph.as_mut().ok_or(Error::NoGraph)?;
    if !graph.output.iter().any(|value| value.name() == output) {
        let outputs = graph.output.iter().map(|value| format!("\"{}\"", value.name())).collect();
        return Err(Error::NoOutput { name: output.into(), outputs });
    }
    graph.output.retain(|value| value.name() == output);
    // Nodes stand in topological order, so that one walk from the end meets every consumer before its producer.
    let mut needed: HashSet<String> = HashSet::from([output.into()]);
    let mut nodes = std::mem::take(&mut graph.node);
    nodes.reverse();
    nodes.retain(|node| {
        let keep = node.output.iter().any(|name| needed.contains(name));
        if keep {
            needed.extend(node.input.iter().cloned());
            // A subgraph may use any value of the graph around it.
            let subgraphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            needed.extend(subgraphs.flat_map(|inner| inner.node.iter().flat_map(|node| node.input.iter().cloned())));
        }
        keep
    });
    nodes.reverse();
    graph.node = nodes;
    graph.initializer.retain(|tensor| needed.contains(tensor.name()));
    Ok(model.encode_to_vec())
}

/// How many nodes a model's graph has, those of subgraphs not counted; 0 if the bytes are no model.
pub fn count_nodes(bytes: &[u8]) -> usize {
    ModelProto::decode(bytes).ok().and_then(|model| model.graph).map_or(0, |graph| graph.node.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scoregate_schemas::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

    fn node(inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            ..NodeProto::default()
        }
    }

    fn model() -> Vec<u8> {
        let value = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        let tensor = |name: &str| TensorProto { name: Some(name.into()), ..TensorProto::default() };
        let graph = GraphProto {
            node: vec![
                node(&["x", "w"], &["margin"]),
                node(&["margin"], &["probabilities", "aside"]),
                node(&["probabilities", "t"], &["above"]),
                node(&["above"], &["label"]),
            ],
            initializer: vec![tensor("w"), tensor("t")],
            input: vec![value("x"), value("unused")],
            output: vec![value("label"), value("probabilities")],
            ..GraphProto::default()
        };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn what_does_not_lead_to_the_output_is_cut() {
        let cut = keep_output(&model(), "probabilities").unwrap();
        let graph = ModelProto::decode(cut.as_slice()).unwrap().graph.unwrap();
        assert_eq!(graph.node.len(), 2);
        assert_eq!(graph.initializer.iter().map(TensorProto::name).collect::<Vec<_>>(), ["w"]);
        assert_eq!(graph.output.iter().map(ValueInfoProto::name).collect::<Vec<_>>(), ["probabilities"]);
        assert_eq!(graph.input.len(), 2, "inputs stay, used or not");
        assert_eq!(count_nodes(&keep_output(&model(), "label").unwrap()), 4);
    }

    #[test]
    fn what_is_no_such_model_says_so() {
        assert!(matches!(keep_output(b"PK\x03\x04", "label"), Err(Error::NotOnnx(_))));
        assert!(matches!(keep_output(b"", "label"), Err(Error::NoGraph)));
        let error = keep_output(&model(), "score").unwrap_err().to_string();
        assert_eq!(error, "the graph has no output \"score\"; it has \"label\", \"probabilities\"");
    }
}
