//! Operators of the core that move columns about.

use std::sync::Arc;

use scoregate_schemas::manifest::Element;

use super::super::encode::Step;
use super::{Column, Follower, MOST_COLUMNS, Made, Tensor};

impl Follower<'_, '_> {
    pub(super) fn concat(&mut self) -> Option<Tensor> {
        let tensors = (0..self.node.input.len()).map(|at| self.input(at)).collect::<Option<Vec<_>>>()?;
        let first = tensors.first()?;
        let axis = self.axis(first, self.int("axis", 1))?;
        let is_like_first = |tensor: &Arc<Tensor>| {
            let without = |tensor: &Tensor| (tensor.dims[..axis].to_vec(), tensor.dims[axis + 1..].to_vec());
            tensor.per_row == first.per_row
                && tensor.element == first.element
                && tensor.dims.len() == first.dims.len()
                && without(tensor) == without(first)
        };
        if !tensors.iter().all(is_like_first) {
            return None;
        }
        let mut dims = first.dims.clone();
        dims[axis] = tensors.iter().map(|tensor| tensor.dims[axis]).sum();
        let mut columns = Vec::new();
        for block in 0..dims[..axis].iter().product() {
            for tensor in &tensors {
                let size: usize = tensor.dims[axis..].iter().product();
                columns.extend_from_slice(&tensor.columns[block * size..(block + 1) * size]);
            }
        }
        Some(Tensor { dims, columns, ..first.as_ref().clone() })
    }

    pub(super) fn reshape(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let shape = self.list("shape", 1)?;
        if self.int("allowzero", 0) != 0 {
            return None;
        }
        let count = tensor.columns.len();
        let mut wanted = shape.as_slice();
        if tensor.per_row {
            // As many rows as before: what is left over, where each row keeps its columns.
            let (rows, rest) = shape.split_first()?;
            wanted = rest;
            if !(*rows == 0 || (*rows == -1 && rest.iter().all(|dim| *dim != -1))) {
                return None;
            }
        }
        let mut dims = Vec::with_capacity(wanted.len());
        for (at, dim) in wanted.iter().enumerate() {
            dims.push(match dim {
                0 => *tensor.dims.get(at)?,
                -1 => 1,
                dim => usize::try_from(*dim).ok()?,
            });
        }
        if let Some(open) = wanted.iter().position(|dim| *dim == -1) {
            dims[open] = count.checked_div(dims.iter().product())?;
        }
        (dims.iter().product::<usize>() == count).then(|| Tensor { dims, ..tensor.as_ref().clone() })
    }

    pub(super) fn flatten(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        (self.int("axis", 1) == 1)
            .then(|| Tensor { dims: vec![tensor.columns.len()], ..tensor.as_ref().clone() })
    }

    pub(super) fn squeeze(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        // Without axes, a single row would lose its dimension as well.
        let mut dims = tensor.dims.clone();
        let axes = self.list("axes", 1)?;
        let axes = axes.iter().map(|axis| self.axis(&tensor, *axis)).collect::<Option<Vec<_>>>()?;
        for axis in &axes {
            (dims[*axis] == 1).then_some(())?;
        }
        let mut at = 0..;
        dims.retain(|_| at.next().is_some_and(|at| !axes.contains(&at)));
        Some(Tensor { dims, ..tensor.as_ref().clone() })
    }

    pub(super) fn unsqueeze(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let axes = self.list("axes", 1)?;
        let first = usize::from(tensor.per_row);
        let rank = tensor.dims.len() + first + axes.len();
        let places = axes.iter().map(|axis| {
            let axis = if *axis < 0 { axis + rank as i64 } else { *axis };
            usize::try_from(axis).ok().filter(|axis| *axis < rank)?.checked_sub(first)
        });
        let mut places = places.collect::<Option<Vec<_>>>()?;
        places.sort_unstable();
        let mut dims = tensor.dims.clone();
        for place in places {
            (place <= dims.len()).then(|| dims.insert(place, 1))?;
        }
        Some(Tensor { dims, ..tensor.as_ref().clone() })
    }

    /// The entries at `places` along an axis of `dims`, which becomes `new`.
    pub(super) fn take(&self, tensor: &Tensor, axis: usize, places: &[i64], new: &[usize]) -> Option<Tensor> {
        let size = tensor.dims[axis];
        let inner: usize = tensor.dims[axis + 1..].iter().product();
        let outer: usize = tensor.dims[..axis].iter().product();
        let mut columns = Vec::with_capacity(outer * places.len() * inner);
        for block in 0..outer {
            for place in places {
                let place = if *place < 0 { place + size as i64 } else { *place };
                let place = usize::try_from(place).ok().filter(|place| *place < size)?;
                let from = (block * size + place) * inner;
                columns.extend_from_slice(&tensor.columns[from..from + inner]);
            }
        }
        let dims = [&tensor.dims[..axis], new, &tensor.dims[axis + 1..]].concat();
        Some(Tensor { element: tensor.element, per_row: tensor.per_row, dims, columns })
    }

    pub(super) fn gather(&mut self) -> Option<Tensor> {
        let (data, places) = (self.input(0)?, self.input(1)?);
        let axis = self.axis(&data, self.int("axis", 0))?;
        if let Some(found) = self.constants(&places) {
            let found: Vec<i64> = found.into_iter().map(|place| place as i64).collect();
            return self.take(&data, axis, &found, &places.dims);
        }
        // A table, and a row's place in it.
        let entries = self.constants(&data)?;
        let (size, element) = (*data.dims.first()?, data.element);
        if axis != 0 || !matches!(places.element, Element::Int64 | Element::Int32) {
            return None;
        }
        let inner: usize = data.dims[1..].iter().product();
        let lists: Vec<Arc<[f64]>> =
            (0..inner).map(|at| entries.iter().skip(at).step_by(inner).copied().collect()).collect();
        debug_assert!(lists.iter().all(|list| list.len() == size), "one entry per place");
        if places.columns.len() * inner > MOST_COLUMNS {
            return None;
        }
        let mut columns = Vec::with_capacity(places.columns.len() * inner);
        for place in &places.columns {
            for list in &lists {
                columns.push(match place {
                    Column::Of(id) => self.push(Step::Pick(*id, Arc::clone(list)), element),
                    Column::Sum(_) | Column::Opaque => Column::Opaque,
                });
            }
        }
        let dims = [&places.dims[..], &data.dims[1..]].concat();
        Some(Tensor { element, per_row: true, dims, columns })
    }

    pub(super) fn slice(&mut self) -> Option<Tensor> {
        let mut tensor = self.input(0)?.as_ref().clone();
        let (starts, ends) = (self.list("starts", 1)?, self.list("ends", 2)?);
        let axes = if self.has_input(3) || self.attribute("axes").is_some() {
            self.list("axes", 3)?
        } else {
            (0..starts.len() as i64).collect()
        };
        let steps = if self.has_input(4) { self.list("steps", 4)? } else { vec![1; starts.len()] };
        if [ends.len(), axes.len(), steps.len()].iter().any(|length| *length != starts.len()) {
            return None;
        }
        for (at, axis) in axes.iter().enumerate() {
            let axis = self.axis(&tensor, *axis)?;
            let size = tensor.dims[axis] as i64;
            let within =
                |place: i64| (if place < 0 { place.saturating_add(size) } else { place }).clamp(0, size);
            if steps[at] < 1 {
                return None;
            }
            let places: Vec<i64> =
                (within(starts[at])..within(ends[at])).step_by(usize::try_from(steps[at]).ok()?).collect();
            tensor = self.take(&tensor, axis, &places, &[places.len()])?;
        }
        Some(tensor)
    }

    pub(super) fn split(self) -> Made {
        let tensor = self.input(0)?;
        let axis = self.axis(&tensor, self.int("axis", 0))?;
        let (size, count) = (tensor.dims[axis], self.node.output.len());
        let sizes = match self.list("split", 1) {
            Some(sizes) => {
                sizes.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<Vec<_>>>()?
            }
            None if count > 0 && size.is_multiple_of(count) => vec![size / count; count],
            None => return None,
        };
        if sizes.iter().sum::<usize>() != size || sizes.len() != count {
            return None;
        }
        let mut from = 0;
        let part = |size: usize| {
            let places: Vec<i64> = (from as i64..(from + size) as i64).collect();
            from += size;
            self.take(&tensor, axis, &places, &[size])
        };
        Some(sizes.into_iter().map(part).collect())
    }
}
