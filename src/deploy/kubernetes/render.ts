import type { IStatefulSet } from "kubernetes-models/apps/v1/StatefulSet";
import type { IHorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import type { ICronJob } from "kubernetes-models/batch/v1/CronJob";
import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import type { IPodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import type { IConfigMap } from "kubernetes-models/v1/ConfigMap";
import type { INamespace } from "kubernetes-models/v1/Namespace";
import type { IPersistentVolumeClaim } from "kubernetes-models/v1/PersistentVolumeClaim";
import type { IService } from "kubernetes-models/v1/Service";
import type { Layer } from "../../config/layers.js";
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

/** A Kubernetes object as `kubectl` takes it. The types come from the schemas of Kubernetes' own API. */
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
  /** All of it as one stream, to be applied as it is. */
  yaml: string;
}

/** https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;
const SCALING = `It needs an adapter that offers the metric of Prometheus to Kubernetes (custom.metrics.k8s.io), such as
prometheus-adapter; without one it changes nothing, and the StatefulSet stays at the number that it has.`;
const NO_LIMIT = `No limit of memory: reaching one would end every server in the pod at once (the kernel kills a container's
processes as a group), while recycle.maxMemory replaces single servers that have grown, between turns.`;
const GC_SHARED = `Sessions past their time to live are deleted from the shared folder also while no host is up long enough to do
it; each serve collects every serve.gcInterval beside that.`;
const GC_LOCAL = `There is no CronJob for gc: the sessions are on the pods' own volumes, which no other pod may mount while it
cannot see the processes that use them. Each serve collects its own every serve.gcInterval.`;

/**
 * The fleet of this configuration as Kubernetes objects. Their types are those of Kubernetes' own API, and the tests validate
 * each object against its schema.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_CONFIG_INVALID` for what cannot run there.
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
 * Files of a Secret belong to root, and `fsGroup` lets the group read them: `auth.githubTokenFile` refuses such files, and
 * without `fsGroup` nobody but root could read them. The group has no other member here, so they are read by a command.
 */
function configFile({ file, tokenFiles }: Settings): Record<string, unknown> {
  if (tokenFiles === null) return file;
  if (!SECRET_KEY.test(tokenFiles.name.replaceAll("{user}", "u"))) {
    throw unfit(`auth.githubTokenFile ends in ${quote(tokenFiles.name)}, which no key of a Secret can be called`, [
      "Name the file with letters, digits, -, _ and . alone",
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
    return `The Secret ${secret} has to hold ${keys.join(", ")}. From a file with a line KEY=VALUE for each: ${create}`;
  });
}
