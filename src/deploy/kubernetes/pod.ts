import type { IIoK8sApiCoreV1Container } from "kubernetes-models/v1/Container";
import type { IIoK8sApiCoreV1EnvVar } from "kubernetes-models/v1/EnvVar";
import type { IIoK8sApiCoreV1PodSpec } from "kubernetes-models/v1/PodSpec";
import type { IIoK8sApiCoreV1Volume } from "kubernetes-models/v1/Volume";
import type { IIoK8sApiCoreV1VolumeMount } from "kubernetes-models/v1/VolumeMount";
import * as layout from "../container.js";
import { LEAVE_ENDPOINTS_SECONDS } from "../grace.js";
import { inVariables, STORE_VARIABLE } from "../settings.js";
import { EPHEMERAL_MIB, memoryBytes, processorMillis, SCRATCH_MIB } from "../sizing.js";
import { httpOrigins } from "./http.js";
import type { Plan } from "./options.js";

const MIB = 1024 * 1024;
/** The mode of a file in a mounted Secret. Because of `fsGroup`, the group can read it in any mode. */
const GROUP_READABLE = 0o440;

/** Renders the pod of a host, which runs `serve`. The StatefulSet provides the volume at {@link VOLUME}. */
export function hostPod(plan: Plan): IIoK8sApiCoreV1PodSpec {
  const { deployment } = plan;
  return {
    ...pod(plan, { ...container(plan, "serve", ["serve"]), ...hostContainer(plan) }),
    // Kubernetes counts the time that preStop takes as part of the grace period.
    terminationGracePeriodSeconds: LEAVE_ENDPOINTS_SECONDS + deployment.stopGraceSeconds,
    topologySpreadConstraints: [
      {
        maxSkew: 1,
        topologyKey: "kubernetes.io/hostname",
        whenUnsatisfiable: "ScheduleAnyway",
        labelSelector: { matchLabels: { ...plan.labels, "app.kubernetes.io/component": "host" } },
      },
    ],
  };
}

/**
 * Renders the pod for one run of gc. Like a host, the pod has a name in the fleet. Its state folder is deleted with the
 * pod.
 */
export function gcPod(plan: Plan): IIoK8sApiCoreV1PodSpec {
  const gc = container(plan, "gc", ["gc"]);
  const spec = pod(plan, {
    ...gc,
    env: [
      { name: "COPILOTFLEET_HOST_NAME", value: plan.names.gc },
      // Kubernetes creates an emptyDir with mode 0777. This is safe, because the pod has no other user.
      { name: "COPILOTFLEET_ALLOW_UNSAFE_PARENTS", value: "1" },
      ...(gc.env ?? []),
    ],
    resources: { requests: { cpu: "50m", memory: "128Mi" }, limits: { "ephemeral-storage": `${EPHEMERAL_MIB}Mi` } },
  });
  return {
    ...spec,
    restartPolicy: "Never",
    volumes: [...(spec.volumes ?? []), { name: "state", emptyDir: { sizeLimit: `${SCRATCH_MIB}Mi` } }],
  };
}

function pod(plan: Plan, main: IIoK8sApiCoreV1Container): IIoK8sApiCoreV1PodSpec {
  return {
    // Otherwise, a Service named copilotfleet makes Kubernetes set COPILOTFLEET_PORT and similar variables in the pod.
    enableServiceLinks: false,
    ...(plan.options.runtimeClass === undefined ? {} : { runtimeClassName: plan.options.runtimeClass }),
    // The pod does not use the API of Kubernetes.
    automountServiceAccountToken: false,
    securityContext: {
      runAsNonRoot: true,
      runAsUser: layout.UID,
      runAsGroup: layout.UID,
      fsGroup: layout.UID,
      // At each start, "Always" would give the group access to every file of the state, including connection tokens.
      fsGroupChangePolicy: "OnRootMismatch",
      seccompProfile: { type: "RuntimeDefault" },
    },
    containers: [main],
    volumes: volumes(plan),
  };
}

function container(plan: Plan, name: string, args: string[]): IIoK8sApiCoreV1Container {
  const { deployment } = plan;
  return {
    name,
    image: deployment.image,
    command: [...layout.INIT, layout.COMMAND],
    args,
    workingDir: layout.VOLUME,
    env: environment(plan),
    securityContext: {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    },
    volumeMounts: mounts(plan),
  };
}

function hostContainer(plan: Plan): Partial<IIoK8sApiCoreV1Container> {
  const { capacity, http } = plan.deployment;
  const { names, options } = plan;
  const probe = (path: string) => ({ httpGet: { path, port: "metrics" }, timeoutSeconds: 3 });
  return {
    ports: [
      { name: "door", containerPort: layout.DOOR_PORT },
      ...(http === null ? [] : [{ name: "http", containerPort: layout.HTTP_PORT }]),
      { name: "metrics", containerPort: layout.METRICS_PORT },
    ],
    env: [
      { name: "COPILOTFLEET_HOST_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
      {
        name: "COPILOTFLEET_HOST_ADVERTISE",
        value: `$(COPILOTFLEET_HOST_NAME).${names.hosts}.${options.namespace}.svc:${layout.DOOR_PORT}`,
      },
      ...environment(plan),
      ...(http === null ? [] : variables(layout.httpEnvironment(httpOrigins(plan)))),
    ],
    resources: {
      requests: {
        cpu: `${processorMillis(capacity)}m`,
        memory: `${memoryBytes(capacity) / MIB}Mi`,
        "ephemeral-storage": `${EPHEMERAL_MIB}Mi`,
      },
      limits: { "ephemeral-storage": `${EPHEMERAL_MIB}Mi` },
    },
    // A host may need a long time to adopt many servers. Kubernetes runs no other probe until the startup probe
    // succeeds.
    startupProbe: { ...probe("/healthz"), periodSeconds: 2, failureThreshold: 60 },
    readinessProbe: { ...probe("/readyz"), periodSeconds: 5, failureThreshold: 2 },
    // A restart of the container ends all its servers, so Kubernetes restarts it only after a full minute of failures.
    livenessProbe: { ...probe("/healthz"), periodSeconds: 10, failureThreshold: 6 },
    lifecycle: { preStop: { exec: { command: ["sleep", String(LEAVE_ENDPOINTS_SECONDS)] } } },
  };
}

function environment({ deployment, names }: Plan): IIoK8sApiCoreV1EnvVar[] {
  const plain = variables(layout.ENVIRONMENT);
  const shared =
    deployment.storage === "shared" ? [{ name: "COPILOTFLEET_STORAGE_SHARED", value: layout.SHARED_FOLDER }] : [];
  const { secrets, passedOn } = deployment.settings;
  const files = inVariables(secrets).map((secret) => ({ name: secret.variable, value: layout.secretPath(secret) }));
  // The fleet passes these variables on to servers, so they must be variables here, not files.
  const given = passedOn.map((name) => ({
    name,
    valueFrom: { secretKeyRef: { name: names.secret, key: name, optional: true } },
  }));
  return [...plain, ...shared, ...files, ...given];
}

function variables(values: Readonly<Record<string, string>>): IIoK8sApiCoreV1EnvVar[] {
  return Object.entries(values).map(([name, value]) => ({ name, value }));
}

function mounts(plan: Plan): IIoK8sApiCoreV1VolumeMount[] {
  return [
    { name: "state", mountPath: layout.VOLUME },
    ...(plan.deployment.storage === "shared" ? [{ name: "shared", mountPath: layout.SHARED_VOLUME }] : []),
    { name: "config", mountPath: layout.CONFIG_FOLDER, readOnly: true },
    ...secretVolumes(plan).map(({ name }) => ({ name, mountPath: MOUNT_POINTS[name], readOnly: true })),
    { name: "scratch", mountPath: layout.SCRATCH },
  ];
}

function volumes(plan: Plan): IIoK8sApiCoreV1Volume[] {
  const { deployment, names } = plan;
  return [
    ...(deployment.storage === "shared"
      ? [{ name: "shared", persistentVolumeClaim: { claimName: names.shared } }]
      : []),
    { name: "config", configMap: { name: names.config } },
    ...secretVolumes(plan),
    { name: "scratch", emptyDir: { sizeLimit: `${SCRATCH_MIB}Mi` } },
  ];
}

const MOUNT_POINTS = { secrets: layout.SECRETS_FOLDER, "user-secrets": layout.USER_SECRETS_FOLDER };

/** The volumes with the files of the Secrets: one for the secrets of the fleet, one with a file for each user. */
function secretVolumes({ deployment, names }: Plan): (IIoK8sApiCoreV1Volume & { name: keyof typeof MOUNT_POINTS })[] {
  const { secrets } = deployment.settings;
  const keys = new Set(secrets.filter(({ perUser }) => !perUser).map(({ name }) => name));
  const sources = [...keys].map((key) => ({
    secret: { name: secretOf(names, key), items: [{ key, path: key }] },
  }));
  const users = { secretName: names.userTokens, defaultMode: GROUP_READABLE };
  return [
    ...(sources.length === 0
      ? []
      : [{ name: "secrets" as const, projected: { sources, defaultMode: GROUP_READABLE } }]),
    ...(secrets.some(({ perUser }) => perUser) ? [{ name: "user-secrets" as const, secret: users }] : []),
  ];
}

/** The name of the Secret that contains this key. */
export function secretOf(names: Plan["names"], key: string): string {
  return key === STORE_VARIABLE ? names.redisSecret : names.secret;
}
