import type { IStatefulSet } from "kubernetes-models/apps/v1/StatefulSet";
import type { IHorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import type { IIoK8sApiAutoscalingV2HPAScalingRules } from "kubernetes-models/autoscaling/v2/HPAScalingRules";
import type { ICronJob } from "kubernetes-models/batch/v1/CronJob";
import type { IPodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import type { IConfigMap } from "kubernetes-models/v1/ConfigMap";
import type { INamespace } from "kubernetes-models/v1/Namespace";
import type { IPersistentVolumeClaim } from "kubernetes-models/v1/PersistentVolumeClaim";
import type { IIoK8sApiCoreV1PersistentVolumeClaimSpec } from "kubernetes-models/v1/PersistentVolumeClaimSpec";
import type { IService } from "kubernetes-models/v1/Service";
import { sha256 } from "../../config/values/text.js";
import { CONFIG_FILE, DOOR_PORT, METRICS_PORT } from "../container.js";
import { configText } from "../settings.js";
import { diskGib } from "../sizing.js";
import { httpPorts } from "./http.js";
import { GC, HOST, metadata, type Plan, selector } from "./options.js";
import { gcPod, hostPod } from "./pod.js";

function object<Version extends string, Kind extends string, Spec>(
  plan: Plan,
  apiVersion: Version,
  kind: Kind,
  name: string,
  spec: Spec,
) {
  return { apiVersion, kind, metadata: metadata(plan, name), spec };
}

/** Renders the namespace. In it, Kubernetes refuses pods that ask for more rights than the pods of the fleet have. */
export function namespace({ options, labels }: Plan): INamespace {
  return {
    apiVersion: "v1",
    kind: "Namespace",
    metadata: {
      name: options.namespace,
      labels: { ...labels, "pod-security.kubernetes.io/enforce": "restricted" },
    },
  };
}

export function configMap(plan: Plan): IConfigMap {
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: metadata(plan, plan.names.config),
    data: { [CONFIG_FILE]: configText(plan.deployment.settings.values) },
  };
}

/** Renders the Service that clients connect to. It selects any ready host, because each host accepts every user. */
export function frontService(plan: Plan): IService {
  return object(plan, "v1", "Service", plan.names.main, {
    selector: selector(plan, HOST),
    ports: [{ name: "door", port: DOOR_PORT, targetPort: "door" }, ...httpPorts(plan)],
  });
}

/** Renders the headless Service. It gives each pod a name, at which other hosts and Prometheus reach it. */
export function hostsService(plan: Plan): IService {
  return object(plan, "v1", "Service", plan.names.hosts, {
    clusterIP: "None",
    // A draining host is not ready, but it still has sessions that other hosts ask for.
    publishNotReadyAddresses: true,
    selector: selector(plan, HOST),
    ports: [
      { name: "door", port: DOOR_PORT, targetPort: "door" },
      { name: "metrics", port: METRICS_PORT, targetPort: "metrics" },
    ],
  });
}

export function sharedClaim(plan: Plan): IPersistentVolumeClaim {
  return object(
    plan,
    "v1",
    "PersistentVolumeClaim",
    plan.names.shared,
    claim("ReadWriteMany", plan.options.storageSize ?? sharedSize(plan), plan.options.storageClass),
  );
}

/**
 * The size of the shared volume. It is enough for the sessions of the highest number of hosts that the autoscaler may
 * start.
 */
function sharedSize({ deployment }: Plan): string {
  return `${deployment.maxReplicas * diskGib({ servers: 0, sessions: deployment.capacity.sessions }, true)}Gi`;
}

function claim(
  accessMode: "ReadWriteOnce" | "ReadWriteMany",
  storage: string,
  storageClassName: string | undefined,
): IIoK8sApiCoreV1PersistentVolumeClaimSpec {
  return {
    accessModes: [accessMode],
    resources: { requests: { storage } },
    ...(storageClassName === undefined ? {} : { storageClassName }),
  };
}

export function statefulSet(plan: Plan): IStatefulSet {
  const { deployment, options, names } = plan;
  const { storage, replicas, maxReplicas, capacity } = deployment;
  const local = storage === "local";
  const size = `${diskGib(capacity, local)}Gi`;
  const own = local
    ? claim("ReadWriteOnce", options.storageSize ?? size, options.storageClass)
    : claim("ReadWriteOnce", size, undefined);
  return object(plan, "apps/v1", "StatefulSet", names.main, {
    serviceName: names.hosts,
    // If an autoscaler sets the number of replicas, leave the number out, because applying the manifest again would
    // reset it.
    ...(maxReplicas > replicas ? {} : { replicas }),
    // Let Kubernetes start and stop several hosts at once, because they do not depend on each other.
    podManagementPolicy: "Parallel",
    updateStrategy: { type: "RollingUpdate" },
    selector: { matchLabels: selector(plan, HOST) },
    template: {
      metadata: {
        labels: selector(plan, HOST),
        // A host reads the configuration only when it starts. The hash changes this template when the configuration
        // changes, so that Kubernetes restarts the hosts.
        annotations: {
          "copilotfleet/config-sha256": sha256(configText(deployment.settings.values)),
        },
      },
      spec: hostPod(plan),
    },
    volumeClaimTemplates: [{ apiVersion: "v1", kind: "PersistentVolumeClaim", metadata: { name: "state" }, spec: own }],
    persistentVolumeClaimRetentionPolicy: { whenDeleted: "Retain", whenScaled: "Retain" },
  });
}

/**
 * Renders the budget with which Kubernetes evicts hosts from their nodes one at a time. A host that is not ready can
 * always be evicted.
 */
export function disruptionBudget(plan: Plan): IPodDisruptionBudget {
  return object(plan, "policy/v1", "PodDisruptionBudget", plan.names.main, {
    maxUnavailable: 1,
    unhealthyPodEvictionPolicy: "AlwaysAllow",
    selector: { matchLabels: selector(plan, HOST) },
  });
}

export function gcJob(plan: Plan): ICronJob {
  return object(plan, "batch/v1", "CronJob", plan.names.gc, {
    schedule: "17 * * * *",
    concurrencyPolicy: "Forbid",
    startingDeadlineSeconds: 600,
    successfulJobsHistoryLimit: 1,
    failedJobsHistoryLimit: 3,
    jobTemplate: {
      spec: {
        backoffLimit: 0,
        activeDeadlineSeconds: 1800,
        template: { metadata: { labels: selector(plan, GC) }, spec: gcPod(plan) },
      },
    },
  });
}

/** The name of a metric of `src/serve/report/metrics.ts`. A test checks that the metric exists. */
const ACTIVE_SESSIONS = "copilotfleet_sessions_active";
/** The fraction of the planned sessions at which another host is started, before the existing hosts are full. */
const FILL = 0.8;

/** Removes one host at a time, with long pauses, because a host first waits for its running turns. */
const SLOWLY: IIoK8sApiAutoscalingV2HPAScalingRules = {
  stabilizationWindowSeconds: 1800,
  policies: [{ type: "Pods", value: 1, periodSeconds: 600 }],
};

export function autoscaler(plan: Plan): IHorizontalPodAutoscaler {
  const { replicas, maxReplicas, storage, capacity } = plan.deployment;
  return object(plan, "autoscaling/v2", "HorizontalPodAutoscaler", plan.names.main, {
    scaleTargetRef: { apiVersion: "apps/v1", kind: "StatefulSet", name: plan.names.main },
    minReplicas: replicas,
    maxReplicas,
    metrics: [
      {
        type: "Pods",
        pods: {
          metric: { name: ACTIVE_SESSIONS },
          target: { type: "AverageValue", averageValue: String(Math.max(1, Math.floor(capacity.sessions * FILL))) },
        },
      },
    ],
    behavior: {
      scaleUp: { stabilizationWindowSeconds: 60, policies: [{ type: "Pods", value: 2, periodSeconds: 60 }] },
      // With local storage, never remove a host, because the other hosts could not reach its sessions.
      scaleDown: storage === "local" ? { selectPolicy: "Disabled" } : SLOWLY,
    },
  });
}
