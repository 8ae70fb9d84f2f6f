//! Every GPU of the fake's catalogue, by its own profile names.

use fake_nvml::Description;

use crate::rig::{Rig, mig};

#[tokio::test]
async fn every_profile_of_every_model_is_offered_under_the_catalogues_name() {
    for model in fake_nvml::catalogue::models() {
        if model.profiles.is_empty() {
            continue;
        }
        // A GPU per profile, so that each is there whatever else would fit.
        let mut description = Description::of(&model.key, model.profiles.len());
        for (index, profile) in model.profiles.iter().enumerate() {
            description.set_mig(index, &[profile.name.as_str()]);
        }
        let rig = Rig::mixed(&description).await;
        let mut names: Vec<_> = model.profiles.iter().map(|profile| mig(&profile.name)).collect();
        names.sort();
        let counts: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        rig.wait_for_counts(&counts).await;
        rig.finish().await;
    }
}
