import { spawnSync } from "node:child_process";
import { StatefulSet as StatefulSetModel } from "kubernetes-models/apps/v1/StatefulSet";
import { HorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import { CronJob } from "kubernetes-models/batch/v1/CronJob";
import { Ingress } from "kubernetes-models/networking.k8s.io/v1/Ingress";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import { PodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import { ConfigMap } from "kubernetes-models/v1/ConfigMap";
import { Namespace } from "kubernetes-models/v1/Namespace";
import { PersistentVolumeClaim } from "kubernetes-models/v1/PersistentVolumeClaim";
import { Service } from "kubernetes-models/v1/Service";
import { loadConfig, type PartialConfig } from "../../src/config/load/load.js";
import type { DeployOptions } from "../../src/deploy/deployment.js";
import { type KubernetesOptions, renderKubernetes } from "../../src/deploy/kubernetes.js";

/** A folder that does not exist, so that no configuration file is found from it. */
const NOWHERE = "/nonexistent/copilotfleet";

/** Loads the configuration from these variables and flags only, and reads no file. */
export function configured(env: Record<string, string> = {}, flags: PartialConfig = {}) {
  return loadConfig({ env, flags, cwd: NOWHERE, home: NOWHERE });
}

export const CONTAINERS: DeployOptions = { name: "fleet", image: "registry.example/fleet:1" };

export const KUBERNETES: KubernetesOptions = {
  ...CONTAINERS,
  namespace: "chat",
  "monitoring-namespace": "monitoring",
  "client-namespace": [],
  "egress-cidr": [],
  "ingress-namespace": "ingress-nginx",
};

/** Renders the manifests of `deploy kubernetes`, and validates each object by the schema of the Kubernetes API. */
export function kubernetes(env: Record<string, string> = {}, options: Partial<KubernetesOptions> = {}) {
  const rendered = renderKubernetes(configured(env), { ...KUBERNETES, ...options });
  for (const manifest of rendered.manifests) validate(manifest);
  return rendered as { manifests: Manifest[]; notices: string[]; yaml: string };
}

export type Manifest = { kind: string; metadata?: { name?: string } };

const MODELS: Readonly<Record<string, new (manifest: never) => { validate(): void }>> = {
  ConfigMap,
  CronJob,
  HorizontalPodAutoscaler,
  Ingress,
  Namespace,
  NetworkPolicy,
  PersistentVolumeClaim,
  PodDisruptionBudget,
  Service,
  StatefulSet: StatefulSetModel,
};

/** Validates an object. @throws Error that names the first part that breaks the schema of its kind and version */
export function validate(manifest: Manifest): void {
  const Model = MODELS[manifest.kind];
  if (Model === undefined) throw new Error(`there is no schema for ${manifest.kind}`);
  new Model(manifest as never).validate();
}

export const REDIS = { COPILOTFLEET_STORE: "rediss://redis.example:6380/0", COPILOTFLEET_PROVIDER_TYPE: "echo" };

/** A manifest whose type lets tests read any path. A test that reads a missing path fails. */
export interface Parts {
  [key: string]: Parts;
}

/** Returns the only object of this kind and name. Fails if there is none or more than one. */
export function find(manifests: readonly Manifest[], kind: string, name?: string): Parts {
  const [found, ...more] = manifests.filter(
    (m) => m.kind === kind && (name === undefined || m.metadata?.name === name),
  );
  if (found === undefined || more.length > 0) throw new Error(`there is not one ${kind} ${name ?? ""}`);
  return found as unknown as Parts;
}

/** The only container of a host's pod. */
export function hostContainer(manifests: readonly Manifest[]) {
  const { spec } = find(manifests, "StatefulSet") as unknown as StatefulSet;
  const [container] = spec.template.spec.containers;
  if (container === undefined) throw new Error("the pod has no container");
  return container;
}

export interface StatefulSet {
  spec: {
    template: { metadata: { labels: Record<string, string> }; spec: PodSpec };
    volumeClaimTemplates: { metadata: { name: string } }[];
  };
}

export interface PodSpec {
  runtimeClassName?: string;
  terminationGracePeriodSeconds: number;
  securityContext: { runAsUser: number; runAsGroup: number; fsGroup: number; runAsNonRoot: boolean };
  containers: Container[];
  volumes: {
    name: string;
    configMap?: { name: string };
    emptyDir?: { sizeLimit: string };
    secret?: { secretName: string };
    projected?: Projected;
  }[];
}

interface Projected {
  sources: { secret: { name: string; items: { key: string; path: string }[] } }[];
}

interface Container {
  resources: { limits: Record<string, string> };
  command: string[];
  args: string[];
  workingDir: string;
  env: {
    name: string;
    value?: string;
    valueFrom?: { secretKeyRef?: { name: string; key: string; optional?: boolean } };
  }[];
  volumeMounts: { name: string; mountPath: string; readOnly?: boolean }[];
  securityContext: {
    readOnlyRootFilesystem: boolean;
    allowPrivilegeEscalation: boolean;
    capabilities: { drop: string[] };
  };
  readinessProbe: { httpGet: { path: string } };
  lifecycle: { preStop: { exec: { command: string[] } } };
}

export function has(program: string): boolean {
  return spawnSync(program, ["--version"]).error === undefined;
}
