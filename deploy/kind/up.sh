#!/usr/bin/env bash
# Brings up a cluster with kind, with the plugin and eight fake H100s, and runs a pod that asks for a slice.
# Again on a cluster that is up: builds and installs anew. down.sh takes it away.
set -euo pipefail
cd "$(dirname "$0")/../.."

cluster=mig-device-plugin
node=$cluster-control-plane
image=localhost/mig-device-plugin:kind
namespace=mig-device-plugin
# The user's own contexts stay as they are.
export KUBECONFIG=$PWD/target/kind/kubeconfig

step() { printf '\n== %s\n' "$*"; }

missing=()
for tool in docker kind kubectl helm; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "these are needed and not there: ${missing[*]}" >&2
    exit 1
fi
docker info >/dev/null || { echo "Docker does not answer; see above" >&2; exit 1; }
mkdir -p target/kind

step "the image"
# Attestations make an image of several parts, which kind does not load from every store.
BUILDX_NO_DEFAULT_ATTESTATIONS=1 DOCKER_BUILDKIT=1 docker build --file deploy/kind/Dockerfile --tag "$image" .

step "the cluster"
if kind get clusters 2>/dev/null | grep -qxF "$cluster"; then
    kind export kubeconfig --name "$cluster"
else
    kind create cluster --name "$cluster" --config deploy/kind/cluster.yaml --wait 300s
fi
kind load docker-image --name "$cluster" "$image"

step "the fake driver, on the node"
# What a driver's package does on a real one: a library, device nodes, files below proc.
container=$(docker create "$image")
docker cp "$container:/opt/fake-nvml" - | docker cp - "$node:/opt"
docker rm "$container" >/dev/null
docker exec "$node" /opt/fake-nvml/fake-nvml create /opt/fake-nvml/node /opt/fake-nvml/h100x8-mixed.yaml
kubectl label node "$node" --overwrite nvidia.com/gpu.present=true

step "the plugin"
kubectl delete pod slice --namespace default --ignore-not-found --timeout 60s
# The image has the same tag each time, so its ID says whether the pod has to be a new one.
helm upgrade --install mig-device-plugin deploy/helm/mig-device-plugin \
    --namespace "$namespace" --create-namespace --values deploy/kind/values.yaml \
    --set-string "podAnnotations.image=$(docker image inspect --format '{{.Id}}' "$image")"
kubectl --namespace "$namespace" rollout status daemonset/mig-device-plugin --timeout 180s
kubectl wait "node/$node" --timeout 60s --for "jsonpath={.status.allocatable.nvidia\.com/mig-2g\.20gb}=2"
echo "allocatable:"
kubectl get node "$node" --output jsonpath='{.status.allocatable}' | sed 's/[,{}]/\n/g' | grep nvidia

step "a pod that asks for a slice"
kubectl apply --filename deploy/kind/pod.yaml
kubectl wait --namespace default --for condition=Ready pod/slice --timeout 120s
kubectl logs --namespace default slice

step "done"
cat <<END
export KUBECONFIG=$KUBECONFIG
kubectl --namespace $namespace logs daemonset/mig-device-plugin
deploy/kind/down.sh
END
