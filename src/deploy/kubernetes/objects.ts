import { createHash } from "node:crypto";
import type { IStatefulSet } from "kubernetes-models/apps/v1/StatefulSet";
import type { ICronJob } from "kubernetes-models/batch/v1/CronJob";
import type { IPodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import type { IConfigMap } from "kubernetes-models/v1/ConfigMap";
import type { INamespace } from "kubernetes-models/v1/Namespace";
import type { IPersistentVolumeClaim } from "kubernetes-models/v1/PersistentVolumeClaim";
import type { IIoK8sApiCoreV1PersistentVolumeClaimSpec } from "kubernetes-models/v1/PersistentVolumeClaimSpec";
import type { IService } from "kubernetes-models/v1/Service";
import { CONFIG_FILE, DOOR_PORT, METRICS_PORT } from "../container.js";
import { configText } from "../settings.js";
import { diskGib } from "../sizing.js";
import { GC, HOST, metadata, type Plan, selector } from "./options.js";
import { gcPod, hostPod } from "./pod.js";

/** Renders the namespace. Kubernetes refuses pods in it that ask for more rights than the pods of the fleet. */
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

export function configMap(plan: Plan, file: Record<string, unknown>): IConfigMap {
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: metadata(plan, plan.names.config),
    data: { [CONFIG_FILE]: configText(file) },
  };
}

/** Renders the Service that clients connect to. It selects any ready host, because each host accepts every user. */
export function frontService(plan: Plan): IService {
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata: metadata(plan, plan.names.main),
    spec: { selector: selector(plan, HOST), ports: [{ name: "door", port: DOOR_PORT, targetPort: "door" }] },
  };
}

/** Renders the headless Service. It gives each pod a name, at which other hosts and Prometheus reach it. */
export function hostsService(plan: Plan): IService {
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata: metadata(plan, plan.names.hosts),
    spec: {
      clusterIP: "None",
      // A draining host is not ready, but it still has sessions that other hosts ask for.
      publishNotReadyAddresses: true,
      selector: selector(plan, HOST),
      ports: [
        { name: "door", port: DOOR_PORT, targetPort: "door" },
        { name: "metrics", port: METRICS_PORT, targetPort: "metrics" },
      ],
    },
  };
}

export function sharedClaim(plan: Plan): IPersistentVolumeClaim {
  return {
    apiVersion: "v1",
    kind: "PersistentVolumeClaim",
    metadata: metadata(plan, plan.names.shared),
    spec: claim("ReadWriteMany", plan.options.storageSize ?? sharedSize(plan), plan.options.storageClass),
  };
}

/** The size for the sessions of the highest number of hosts. */
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

export function statefulSet(plan: Plan, file: Record<string, unknown>): IStatefulSet {
  const { deployment, options, names } = plan;
  const { storage, replicas, maxReplicas, capacity } = deployment;
  const local = storage === "local";
  const size = `${diskGib(capacity, local)}Gi`;
  const own = local
    ? claim("ReadWriteOnce", options.storageSize ?? size, options.storageClass)
    : claim("ReadWriteOnce", size, undefined);
  return {
    apiVersion: "apps/v1",
    kind: "StatefulSet",
    metadata: metadata(plan, names.main),
    spec: {
      serviceName: names.hosts,
      // If there is an autoscaler, it sets the number. Applying the manifest again would reset it.
      ...(maxReplicas > replicas ? {} : { replicas }),
      // Hosts start and end independently of each other.
      podManagementPolicy: "Parallel",
      updateStrategy: { type: "RollingUpdate" },
      selector: { matchLabels: selector(plan, HOST) },
      template: {
        metadata: {
          labels: selector(plan, HOST),
          // The configuration is read at the start, so a changed configuration must change the template.
          annotations: {
            "copilotfleet/config-sha256": createHash("sha256").update(configText(file)).digest("hex"),
          },
        },
        spec: hostPod(plan),
      },
      volumeClaimTemplates: [
        { apiVersion: "v1", kind: "PersistentVolumeClaim", metadata: { name: "state" }, spec: own },
      ],
      persistentVolumeClaimRetentionPolicy: { whenDeleted: "Retain", whenScaled: "Retain" },
    },
  };
}

/**
 * Renders the disruption budget. Kubernetes evicts one host at a time from its nodes. A host that is not ready can
 * always be evicted.
 */
export function disruptionBudget(plan: Plan): IPodDisruptionBudget {
  return {
    apiVersion: "policy/v1",
    kind: "PodDisruptionBudget",
    metadata: metadata(plan, plan.names.main),
    spec: {
      maxUnavailable: 1,
      unhealthyPodEvictionPolicy: "AlwaysAllow",
      selector: { matchLabels: selector(plan, HOST) },
    },
  };
}

export function gcJob(plan: Plan): ICronJob {
  return {
    apiVersion: "batch/v1",
    kind: "CronJob",
    metadata: metadata(plan, plan.names.gc),
    spec: {
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
    },
  };
}
