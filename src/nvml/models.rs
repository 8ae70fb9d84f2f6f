//! What is the same for all GPUs of a model, asked once and kept while the library is open: the table of
//! profiles, and what each kind of MIG device is called.

use std::collections::HashMap;

use nvml_wrapper::Device;
use nvml_wrapper::struct_wrappers::device::DeviceAttributes;

use super::calls::Caller;
use super::error::CallError;
use super::names::{self, Slices};
use super::raw::{self, ProfileInfo, ProfileInfoVersion};
use crate::inventory::{Placement, Profile};

/// Ends the walk through a driver that never says "invalid argument". nvml.h had 18 indices when this was
/// written; the bindings know 17.
const PROFILE_INDICES: u32 = 64;

/// Product name (or the UUID of a GPU that does not tell it) and total memory in MiB: boards of one name
/// come with different memory, and then differ in their profiles' names.
type ModelKey = (String, Option<u64>);

/// All models met so far.
#[derive(Debug, Default)]
pub(super) struct Models {
    models: HashMap<ModelKey, Model>,
    /// The newest form of profile information that this library knows, once asked.
    version: Option<ProfileInfoVersion>,
}

/// One model of GPU.
#[derive(Debug, Default)]
pub(super) struct Model {
    profiles: Vec<(u32, ProfileInfo)>,
    /// How many memory slices the whole GPU has.
    pub(super) memory_slices: Option<u32>,
    /// Whether every answer was one: trouble of the moment must not be kept for as long as the library is open.
    complete: bool,
    /// By profile ID and attributes, which tell compute instances of one profile apart.
    names: HashMap<(u32, DeviceAttributes), Profile>,
}

impl Models {
    /// The model that `gpu` is of. The first GPU of each answers for all; it must be in MIG mode, since
    /// old drivers list no profiles otherwise.
    pub(super) fn of(
        &mut self,
        calls: &Caller,
        gpu: &Device<'_>,
        name: &str,
        total_mib: Option<u64>,
    ) -> Result<&mut Model, CallError> {
        let key = (name.to_owned(), total_mib);
        let Self { models, version } = self;
        match models.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => {
                Ok(new.insert(Model::ask(calls, gpu, version)?))
            }
        }
    }

    /// Lets models be asked again that told of no profile, or not of all: the driver had trouble just then.
    pub(super) fn forget_incomplete(&mut self) {
        let known = self.models.len();
        self.models.retain(|_, model| model.complete && !model.profiles.is_empty());
        if self.models.len() < known {
            self.version = None;
        }
    }
}

impl Model {
    fn ask(
        calls: &Caller,
        gpu: &Device<'_>,
        version: &mut Option<ProfileInfoVersion>,
    ) -> Result<Self, CallError> {
        let mut complete = true;
        let version = match *version {
            Some(version) => version,
            None => *version.insert(newest_version(calls, gpu)?),
        };
        let mut profiles = Vec::new();
        for index in 0..PROFILE_INDICES {
            match profile_info(calls, gpu, version, index) {
                Ok(info) => profiles.push((index, info)),
                Err(error) if error.is_invalid_argument() => break,
                Err(error) if error.driver_is_gone() || error.gpu_is_gone() => return Err(error),
                // Not on this GPU; the next one may be.
                Err(error) => complete &= error.is_refusal() || error.is_about_the_argument(),
            }
        }
        let memory_slices = match largest(&profiles).map(|info| raw::possible_placements(calls, gpu, info.id))
        {
            Some(Err(error)) if error.driver_is_gone() || error.gpu_is_gone() => return Err(error),
            Some(Ok(placements)) => placements.into_iter().map(end).max(),
            Some(Err(_)) | None => None,
        };
        Ok(Self { profiles, memory_slices, complete, names: HashMap::new() })
    }

    /// The profile with this ID on this model.
    pub(super) fn profile(&self, id: u32) -> Option<&ProfileInfo> {
        self.entry(id).map(|(_, info)| info)
    }

    fn entry(&self, id: u32) -> Option<&(u32, ProfileInfo)> {
        self.profiles.iter().find(|(_, info)| info.id == id)
    }

    /// What a MIG device is called. `device_name` asks the driver for the device's name; it is called once
    /// per kind of device, unless the profile is unknown: then two devices may be alike in all that is
    /// known and yet have different names.
    pub(super) fn name_of(
        &mut self,
        profile_id: Option<u32>,
        attributes: &DeviceAttributes,
        total_mib: Option<u64>,
        device_name: impl FnOnce() -> Result<Option<String>, CallError>,
    ) -> Result<Profile, CallError> {
        let key = profile_id.map(|id| (id, attributes.clone()));
        if let Some(known) = key.as_ref().and_then(|key| self.names.get(key)) {
            return Ok(known.clone());
        }
        let device_name = device_name()?;
        let name = self.work_out(profile_id, attributes, total_mib, device_name.as_deref());
        if let Some(key) = key {
            self.names.insert(key, name.clone());
        }
        Ok(name)
    }

    fn work_out(
        &self,
        profile_id: Option<u32>,
        attributes: &DeviceAttributes,
        total_mib: Option<u64>,
        device_name: Option<&str>,
    ) -> Profile {
        let slices = Slices {
            compute: attributes.compute_instance_slice_count,
            gpu: attributes.gpu_instance_slice_count,
        };
        let entry = profile_id.and_then(|id| self.entry(id));
        let of_device = device_name.and_then(names::from_device_name);
        let of_profile = entry
            .and_then(|(_, info)| info.name.as_deref())
            .and_then(|name| names::from_profile_name(name, slices));
        if let (Some(device), Some(profile)) = (&of_device, &of_profile)
            && device != profile
        {
            tracing::debug!(%device, %profile, "the driver names a device and its profile differently");
        }
        of_device
            .or(of_profile)
            .or_else(|| match (profile_id, entry) {
                // Without the right to ask for the profile, its sizes must do.
                (None, _) => names::by_rule(None, slices, attributes.memory_size_mb, total_mib),
                (Some(_), Some((index, _))) => {
                    names::by_rule(Some(*index), slices, attributes.memory_size_mb, total_mib)
                }
                (Some(_), None) => None,
            })
            .unwrap_or_else(|| {
                Profile::unnamed(profile_id, attributes.multiprocessor_count, attributes.memory_size_mb)
            })
    }
}

fn profile_info(
    calls: &Caller,
    gpu: &Device<'_>,
    version: ProfileInfoVersion,
    index: u32,
) -> Result<ProfileInfo, CallError> {
    calls.ask(version.call(), || raw::profile_info(gpu, version, index))
}

/// Index 0 is known to every driver, so an answer to it that is about the argument is about its version.
fn newest_version(calls: &Caller, gpu: &Device<'_>) -> Result<ProfileInfoVersion, CallError> {
    for version in [ProfileInfoVersion::V3, ProfileInfoVersion::V2] {
        match profile_info(calls, gpu, version, 0) {
            Ok(_) => return Ok(version),
            Err(error) if error.driver_is_gone() || error.gpu_is_gone() => return Err(error),
            // Also "not supported", which can be meant for the profile: the next form then says the same.
            Err(_) => {}
        }
    }
    Ok(ProfileInfoVersion::V1)
}

/// The profile that is the whole GPU.
fn largest(profiles: &[(u32, ProfileInfo)]) -> Option<&ProfileInfo> {
    profiles.iter().map(|(_, info)| info).max_by_key(|info| (info.memory_mib, info.slice_count))
}

/// One past the last memory slice.
fn end(placement: Placement) -> u32 {
    placement.start.saturating_add(placement.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: u32, slices: u32, memory_mib: u64, name: Option<&str>) -> ProfileInfo {
        ProfileInfo {
            id,
            slice_count: slices,
            sm_count: 16 * slices,
            memory_mib,
            name: name.map(str::to_owned),
        }
    }

    fn attributes(compute: u32, gpu: u32, memory_mib: u64) -> DeviceAttributes {
        DeviceAttributes {
            multiprocessor_count: 16 * compute,
            shared_copy_engine_count: gpu,
            shared_decoder_count: 0,
            shared_encoder_count: 0,
            shared_jpeg_count: 0,
            shared_ofa_count: 0,
            gpu_instance_slice_count: gpu,
            compute_instance_slice_count: compute,
            memory_size_mb: memory_mib,
        }
    }

    fn h100() -> Model {
        let profiles = vec![
            (0, info(19, 1, 9984, Some("MIG 1g.10gb"))),
            (2, info(9, 3, 40448, None)),
            (7, info(20, 1, 9984, None)),
            (40, info(77, 2, 20096, None)),
        ];
        Model { profiles, memory_slices: Some(8), complete: true, names: HashMap::new() }
    }

    fn name(
        model: &mut Model,
        id: Option<u32>,
        attributes: &DeviceAttributes,
        device: Option<&str>,
    ) -> String {
        let device_name = || Ok(device.map(str::to_owned));
        model.name_of(id, attributes, Some(81559), device_name).unwrap().to_string()
    }

    #[test]
    fn a_model_that_was_learnt_in_a_bad_moment_is_asked_again() {
        let model = |complete| Model { complete, ..h100() };
        let key = |name: &str| (name.to_owned(), None);
        let models = [(key("whole"), model(true)), (key("part"), model(false))].into();
        let mut models = Models { models, version: Some(ProfileInfoVersion::V1) };
        models.forget_incomplete();
        assert_eq!(models.models.keys().collect::<Vec<_>>(), [&key("whole")]);
        assert!(models.version.is_none(), "which form the driver knows may have been learnt just then too");
    }

    #[test]
    fn the_devices_own_name_comes_before_the_profiles_and_the_rule() {
        let one = attributes(1, 1, 9984);
        assert_eq!(name(&mut h100(), Some(19), &one, Some("NVIDIA H100 MIG 1g.11gb")), "1g.11gb");
        assert_eq!(name(&mut h100(), Some(19), &one, None), "1g.10gb");
        assert_eq!(name(&mut h100(), Some(20), &one, Some("NVIDIA H100")), "1g.10gb+me");
        assert_eq!(name(&mut h100(), Some(9), &attributes(1, 3, 40448), None), "1c.3g.40gb");
        assert_eq!(name(&mut h100(), None, &one, None), "1g.10gb");
    }

    #[test]
    fn a_profile_that_only_its_id_is_known_of_gets_a_name_of_its_own() {
        let odd = attributes(2, 2, 20096);
        assert_eq!(name(&mut h100(), Some(77), &odd, None), "id77.32sm.20096mib");
        assert_eq!(name(&mut h100(), Some(78), &odd, None), "id78.32sm.20096mib");
        assert_eq!(name(&mut h100(), Some(78), &odd, Some("NVIDIA H100 MIG 2g.20gb+new")), "2g.20gb+new");
    }

    #[test]
    fn the_driver_is_asked_once_per_kind() {
        let mut model = h100();
        let one = attributes(1, 1, 9984);
        name(&mut model, Some(19), &one, Some("NVIDIA H100 MIG 1g.10gb"));
        let again = model.name_of(Some(19), &one, None, || panic!("asked twice")).unwrap();
        assert_eq!(again.as_str(), "1g.10gb");
    }

    #[test]
    fn the_largest_profile_is_the_one_with_all_memory() {
        assert_eq!(largest(&h100().profiles).map(|info| info.id), Some(9));
        assert_eq!(largest(&[]), None);
    }
}
