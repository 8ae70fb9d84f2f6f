#!/usr/bin/env bash
# Takes away what up.sh made, but the image and what Docker keeps of building it.
set -euo pipefail
cd "$(dirname "$0")/../.."

KUBECONFIG=$PWD/target/kind/kubeconfig kind delete cluster --name mig-device-plugin
rm -rf target/kind
