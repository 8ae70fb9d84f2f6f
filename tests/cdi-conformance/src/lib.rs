//! Checks the CDI specification that the plugin writes with the crate `container-device-interface`. It is a member of
//! its own because that crate brings 145 packages, which neither the plugin nor its benchmark should be built with.
