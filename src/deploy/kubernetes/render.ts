import type { IStatefulSet } from "kubernetes-models/apps/v1/StatefulSet";
import type { IHorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import type { ICronJob } from "kubernetes-models/batch/v1/CronJob";
import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import type { IPodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import type { IConfigMap } from "kubernetes-models/v1/ConfigMap";
import type { INamespace } from "kubernetes-models/v1/Namespace";
import type { IPersistentVolumeClaim } from "kubernetes-models/v1/PersistentVolumeClaim";
import type { IService } from "kubernetes-models/v1/Service";
import type { Layer } from "../../config/load/layers.js";
import type { Config } from "../../config/schema.js";
import { quote } from "../../errors.js";
import { TOKENS_FOLDER } from "../container.js";
import { describe } from "../deployment.js";
import { unfit } from "../problem.js";
import { type Settings, STORE_VARIABLE } from "../settings.js";
import { yamlStream } from "../yaml.js";
import { networkPolicy } from "./network.js";
import {
  configMap,
  disruptionBudget,
  frontService,
  gcJob,
  hostsService,
  namespace,
  sharedClaim,
  statefulSet,
} from "./objects.js";
import { type KubernetesOptions, type Plan, planOf } from "./options.js";
import { autoscaler } from "./scaling.js";

/** A Kubernetes object. The types are generated from the schemas of the Kubernetes API. */
export type Manifest =
  | IConfigMap
  | ICronJob
  | IHorizontalPodAutoscaler
  | INamespace
  | INetworkPolicy
  | IPersistentVolumeClaim
  | IPodDisruptionBudget
  | IService
  | IStatefulSet;

export interface RenderedKubernetes {
  manifests: Manifest[];
  notices: string[];
  /** All manifests in one stream that can be applied unchanged. */
  yaml: string;
}

/** The allowed keys of a Secret: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;
const SCALING = `The autoscaler needs an adapter that provides the Prometheus metric to Kubernetes (custom.metrics.k8s.io),
such as prometheus-adapter. Without an adapter, the StatefulSet keeps its current number of hosts.`;
const NO_LIMIT = `The container has no memory limit, because reaching it would end every server in the pod at once: the kernel
kills all processes of a container together. recycle.maxMemory replaces single servers that have grown, between turns.`;
const GC_SHARED = `This job deletes expired sessions from the shared folder even if no host stays up long enough to do so.
In addition, each serve runs gc every serve.gcInterval.`;
const GC_LOCAL = `There is no CronJob for gc. The sessions are on the pods' own volumes, and another pod must not mount these,
because it cannot see the processes that use them. Each serve runs gc on its own sessions every serve.gcInterval.`;

/**
 * Renders the fleet of this configuration as Kubernetes objects. The tests validate each object against the schemas of
 * the Kubernetes API.
 *
 * @throws FleetError `FLEET_USAGE_INVALID` or `FLEET_CONFIG_INVALID` when the fleet cannot be deployed in this way.
 */
export function renderKubernetes(
  loaded: { config: Config; given: Layer },
  options: KubernetesOptions,
): RenderedKubernetes {
  const plan = planOf(describe(loaded, options), options);
  const { deployment } = plan;
  const file = configFile(deployment.settings);
  const shared = deployment.storage === "shared";
  const entries: { value: Manifest; comment?: string }[] = [
    { value: namespace(plan) },
    { value: configMap(plan, file) },
    ...(shared ? [{ value: sharedClaim(plan) }] : []),
    { value: hostsService(plan) },
    { value: frontService(plan) },
    { value: networkPolicy(plan) },
    { value: statefulSet(plan, file), comment: NO_LIMIT },
    { value: disruptionBudget(plan), ...(shared ? {} : { comment: GC_LOCAL }) },
    ...(deployment.maxReplicas > deployment.replicas ? [{ value: autoscaler(plan), comment: SCALING }] : []),
    ...(shared ? [{ value: gcJob(plan), comment: GC_SHARED }] : []),
  ];
  const notices = [...secretNotices(plan), ...deployment.notices];
  return { manifests: entries.map(({ value }) => value), notices, yaml: yamlStream(notices, entries) };
}

/**
 * Replaces `auth.githubTokenFile` with a command that prints the file. The files of a Secret belong to root, and
 * `fsGroup` lets the group read them. `auth.githubTokenFile` refuses files that a group can read, but without `fsGroup`
 * only root could read them. Reading them with a command is safe, because the group has no other member.
 */
function configFile({ file, tokenFiles }: Settings): Record<string, unknown> {
  if (tokenFiles === null) return file;
  if (!SECRET_KEY.test(tokenFiles.name.replaceAll("{user}", "u"))) {
    throw unfit(`auth.githubTokenFile ends in ${quote(tokenFiles.name)}, which is not a valid key of a Secret`, [
      "Use only letters, digits, -, _ and . in the name of the file",
    ]);
  }
  return { ...file, auth: { githubTokenCommand: `cat '${TOKENS_FOLDER}/${tokenFiles.name}'` } };
}

function secretNotices({ deployment, names, options }: Plan): string[] {
  const { secrets, tokenFiles, userTokenVariables } = deployment.settings;
  const wanted = new Map<string, string[]>();
  const want = (secret: string, key: string) => wanted.set(secret, [...(wanted.get(secret) ?? []), key]);
  for (const { name, required } of secrets)
    if (required) want(name === STORE_VARIABLE ? names.redisSecret : names.secret, name);
  if (tokenFiles !== null && !tokenFiles.perUser) want(names.secret, tokenFiles.name);
  const ofUsers = userTokenVariables ?? (tokenFiles?.perUser === true ? tokenFiles.name : null);
  if (ofUsers !== null) want(names.userTokens, `${ofUsers} for each user`);
  return [...wanted].map(([secret, keys]) => {
    const create = `kubectl create secret generic ${secret} --namespace ${options.namespace} --from-env-file=FILE`;
    return `The Secret ${secret} must hold ${keys.join(", ")}. To create it from a file with a line KEY=VALUE for each: ${create}`;
  });
}
