//! Fetches one version from the bucket into the mirror, where it is put once it is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use scoregate_model::package::{
    self, MANIFEST, MAX_MANIFEST_BYTES, check_name, digest_of, max_bytes, read_manifest,
};
use scoregate_schemas::Manifest;

use super::bucket::{Shared, addressed};
use super::client::Object;
use super::mirror::Marks;

/// What has come of fetching a version.
#[derive(Debug)]
pub(super) enum Fetched {
    /// It is in its place.
    Placed,
    /// It is as it was.
    Same,
    /// It has changed in the bucket to what no gateway would serve, and stays as it was here.
    Kept(package::Error),
    /// Not all that its manifest lists is there yet.
    Incomplete(String),
}

/// Fetches `version` of `model`, of which the bucket lists `objects`, and puts it in its place if it is whole. One that no gateway would
/// serve is put there, too, where there is none yet: whoever looks at the model is told why it is refused.
///
/// # Errors
/// Whatever keeps it from being fetched or put there; then what was there before is.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    (model, version): (&str, &str),
    objects: &BTreeMap<String, Object>,
) -> Result<Fetched, package::Error> {
    let place = |name: &str| format!("{model}/{version}/{name}");
    let Some((text, object)) = shared.client.read(&place(MANIFEST), MAX_MANIFEST_BYTES).await? else {
        return Ok(Fetched::Incomplete(MANIFEST.into()));
    };
    let mut marks = Marks::from([(MANIFEST.into(), object.mark)]);
    let (files, mut fault) = match serde_json::from_slice::<Manifest>(&text) {
        Ok(manifest) => (manifest.files, None),
        Err(source) => {
            let path = shared.client.place(&place(MANIFEST));
            (BTreeMap::new(), Some(package::Error::Manifest { path, source }))
        }
    };
    let chosen = match choose(&files, objects) {
        Ok(chosen) => chosen,
        Err(missing) => return Ok(Fetched::Incomplete(missing.into())),
    };
    let staging = shared.mirror.staging(model)?;
    for file in &chosen {
        match download(shared, &place(&file.object), file, staging.path()).await? {
            Downloaded::Whole(mark) => drop(marks.insert(file.object.clone(), mark)),
            Downloaded::Gone => return Ok(Fetched::Incomplete(file.name.into())),
            Downloaded::Faulty(mark, error) => {
                marks.insert(file.object.clone(), mark);
                fault = Some(error);
            }
        }
    }
    if shared.mirror.bytes(model, version, MANIFEST).is_some() {
        if let Some(fault) = fault {
            return Ok(Fetched::Kept(fault));
        }
        // The same content that was stored anew, or another one, where what is here is whole: versions never change.
        let here = shared.mirror.repository().directory(model, version);
        let read = tokio::task::spawn_blocking(move || digest_if_whole(&here)).await;
        let is = digest_of(&text);
        match read.ok().flatten() {
            Some(was) if was == is => {
                shared.mirror.note(model, version, &marks)?;
                return Ok(Fetched::Same);
            }
            Some(was) => {
                let problem = format!("found digest {is}, expected {was}, which was published");
                let path = shared.client.place(&place(MANIFEST));
                return Ok(Fetched::Kept(package::Error::Altered { path, problem }));
            }
            None => {}
        }
    }
    let path = staging.path().join(MANIFEST);
    std::fs::write(&path, &text).map_err(|source| package::Error::Io { action: "write", path, source })?;
    let (mirror, of, name) = (shared.mirror.clone(), model.to_owned(), version.to_owned());
    // It waits for the disk.
    let placing = tokio::task::spawn_blocking(move || mirror.place(&of, &name, staging, &marks));
    let placed = placing.await;
    placed.unwrap_or_else(|panic| {
        let path = shared.mirror.repository().directory(model, version);
        Err(package::Error::Io { action: "write", path, source: io::Error::other(panic) })
    })?;
    Ok(Fetched::Placed)
}

/// A file of a version, and the object that has its content.
struct Wanted<'f> {
    name: &'f str,
    digest: &'f str,
    /// Below the version.
    object: String,
    listed: &'f Object,
}

/// Whether `objects` have every file of a manifest.
pub(super) fn is_whole(manifest: &Manifest, objects: &BTreeMap<String, Object>) -> bool {
    choose(&manifest.files, objects).is_ok()
}

/// Where the files of a manifest are among `objects`, or one that is nowhere. Names that are no plain ones are passed over: they are
/// refused by whoever reads the version.
fn choose<'f>(
    files: &'f BTreeMap<String, String>,
    objects: &'f BTreeMap<String, Object>,
) -> Result<Vec<Wanted<'f>>, &'f str> {
    let plain = files.iter().filter(|(name, _)| check_name("file", name).is_ok());
    plain
        .map(|(name, digest)| {
            let mut places = [addressed(name, digest), name.clone()].into_iter();
            let found = places.find_map(|object| Some((objects.get(&object)?, object)));
            let (listed, object) = found.ok_or(name.as_str())?;
            Ok(Wanted { name, digest, object, listed })
        })
        .collect()
}

/// What has come of a file.
enum Downloaded {
    /// Its content is what the manifest says, of an object that is told by this mark.
    Whole(String),
    /// It is nothing that a gateway would serve, and will be no other next time.
    Faulty(String, package::Error),
    /// There is no such object any more.
    Gone,
}

/// Writes a file of a version into `directory`.
async fn download(
    shared: &Shared,
    key: &str,
    wanted: &Wanted<'_>,
    directory: &Path,
) -> Result<Downloaded, package::Error> {
    let path = directory.join(wanted.name);
    let error = |action, source| package::Error::Io { action, path: path.clone(), source };
    let mut file = File::create_new(&path).map_err(|source| error("create", source))?;
    let found = match shared.client.download(key, max_bytes(wanted.name), &mut file).await {
        Err(fault @ package::Error::TooLarge { .. }) => {
            std::fs::remove_file(&path).map_err(|source| error("remove", source))?;
            return Ok(Downloaded::Faulty(wanted.listed.mark.clone(), fault));
        }
        found => found?,
    };
    let Some((object, digest)) = found else { return Ok(Downloaded::Gone) };
    if digest == wanted.digest {
        return Ok(Downloaded::Whole(object.mark));
    }
    let problem = format!("found digest {digest}, expected {} of the manifest", wanted.digest);
    let fault = package::Error::Altered { path: shared.client.place(key), problem };
    Ok(Downloaded::Faulty(object.mark, fault))
}

/// The digest of the manifest of the version in `directory`, if its files are what it lists.
fn digest_if_whole(directory: &Path) -> Option<String> {
    let (manifest, digest) = read_manifest(directory).ok()?;
    let mut files = manifest.files.iter();
    let is_whole = files.all(|(name, digest)| {
        std::fs::read(directory.join(name)).is_ok_and(|bytes| digest_of(&bytes) == *digest)
    });
    is_whole.then_some(digest)
}
