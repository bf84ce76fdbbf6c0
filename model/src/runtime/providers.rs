//! Execution providers: what runs a graph's nodes, and how many each of them got.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider as _};
use ort::session::builder::SessionBuilder;
use prost::Message;
use scoregate_schemas::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeDimension, TensorShapeDimensionValue,
    TensorShapeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};
use serde::Deserialize;

/// What runs a graph's nodes besides the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExecutionProvider {
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// NVIDIA GPUs through TensorRT.
    TensorRt,
    /// AMD GPUs.
    MiGraphX,
    /// Intel processors and GPUs.
    OpenVino,
    /// oneDNN on the CPU.
    OneDnn,
    /// XNNPACK on the CPU.
    Xnnpack,
}

/// A name that is no execution provider's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cpu, cuda, tensorrt, migraphx, openvino, onednn or xnnpack")]
pub struct UnknownProvider;

impl FromStr for ExecutionProvider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, UnknownProvider> {
        Self::ALL.into_iter().find(|provider| provider.as_str() == name).ok_or(UnknownProvider)
    }
}

impl ExecutionProvider {
    const ALL: [Self; 6] =
        [Self::Cuda, Self::TensorRt, Self::MiGraphX, Self::OpenVino, Self::OneDnn, Self::Xnnpack];

    /// As the settings call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::MiGraphX => "migraphx",
            Self::OpenVino => "openvino",
            Self::OneDnn => "onednn",
            Self::Xnnpack => "xnnpack",
        }
    }

    /// Whether it moves rows to another device, which costs more than a few rows are worth.
    pub fn is_accelerator(self) -> bool {
        !matches!(self, Self::OneDnn | Self::Xnnpack)
    }

    /// Adds it to a session; unlike `ort`'s own way, one that is missing is an error.
    pub(super) fn register(self, builder: &mut SessionBuilder) -> ort::Result<()> {
        match self {
            // TensorFloat-32 keeps ten bits of a number's fraction, too few for golden rows to come out.
            Self::Cuda => ep::CUDA::default().with_tf32(false).register(builder),
            Self::TensorRt => ep::TensorRT::default().register(builder),
            Self::MiGraphX => ep::MIGraphX::default().register(builder),
            Self::OpenVino => ep::OpenVINO::default().register(builder),
            Self::OneDnn => ep::OneDNN::default().register(builder),
            Self::Xnnpack => ep::XNNPACK::default().register(builder),
        }
    }
}

/// A graph of one node, `y = x + x` over float32 of any length.
pub(super) fn smallest_graph() -> Vec<u8> {
    /// `TensorProto.DataType.FLOAT`
    const FLOAT: i32 = 1;
    let dimension = TensorShapeDimensionValue::DimParam("N".into());
    let shape =
        TensorShapeProto { dim: vec![TensorShapeDimension { value: Some(dimension), denotation: None }] };
    let tensor = TypeTensorType { elem_type: Some(FLOAT), shape: Some(shape) };
    let value = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(TypeValue::TensorType(tensor.clone())), denotation: None }),
        ..ValueInfoProto::default()
    };
    let add = NodeProto {
        op_type: Some("Add".into()),
        input: vec!["x".into(), "x".into()],
        output: vec!["y".into()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("smallest".into()),
        node: vec![add],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(14) }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// An entry of ONNX Runtime's profile.
#[derive(Deserialize)]
struct Event<'p> {
    #[serde(borrow)]
    cat: std::borrow::Cow<'p, str>,
    #[serde(borrow)]
    name: std::borrow::Cow<'p, str>,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    provider: Option<String>,
}

/// Counts the nodes that a profile names, by provider.
pub(super) fn count_nodes(profile: &Path) -> io::Result<BTreeMap<String, usize>> {
    let text = std::fs::read(profile)?;
    let events: Vec<Event<'_>> = serde_json::from_slice(&text)?;
    let (mut seen, mut counts) = (HashSet::new(), BTreeMap::new());
    for event in &events {
        // Every run of a node is an event of its own; a node is counted once.
        if let ("Node", Some(provider)) = (event.cat.as_ref(), &event.args.provider)
            && event.name.ends_with("_kernel_time")
            && seen.insert(event.name.as_ref())
        {
            *counts.entry(provider.clone()).or_default() += 1;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for provider in ExecutionProvider::ALL {
            assert_eq!(provider.as_str().parse(), Ok(provider));
        }
        assert_eq!("gpu".parse::<ExecutionProvider>(), Err(UnknownProvider));
    }

    #[test]
    fn a_node_is_counted_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = |name: &str, provider: &str| {
            format!(
                r#"{{"cat":"Node","name":"{name}_kernel_time","args":{{"provider":"{provider}","op_name":"Add"}}}}"#
            )
        };
        let events = [
            r#"{"cat":"Session","name":"model_run","args":{}}"#.to_string(),
            node("a", "CPUExecutionProvider"),
            node("b", "CUDAExecutionProvider"),
            node("a", "CPUExecutionProvider"),
            node("c", "CPUExecutionProvider"),
        ];
        std::fs::write(file.path(), format!("[{}]", events.join(","))).unwrap();
        let expected = BTreeMap::from([
            ("CPUExecutionProvider".to_string(), 2),
            ("CUDAExecutionProvider".to_string(), 1),
        ]);
        assert_eq!(count_nodes(file.path()).unwrap(), expected);
    }
}
