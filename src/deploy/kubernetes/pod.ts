import type { IIoK8sApiCoreV1Container } from "kubernetes-models/v1/Container";
import type { IIoK8sApiCoreV1EnvVar } from "kubernetes-models/v1/EnvVar";
import type { IIoK8sApiCoreV1PodSpec } from "kubernetes-models/v1/PodSpec";
import type { IIoK8sApiCoreV1Volume } from "kubernetes-models/v1/Volume";
import type { IIoK8sApiCoreV1VolumeMount } from "kubernetes-models/v1/VolumeMount";
import * as layout from "../container.js";
import { LEAVE_ENDPOINTS_SECONDS } from "../grace.js";
import { STORE_VARIABLE } from "../settings.js";
import { memoryBytes, processorMillis } from "../sizing.js";
import type { Plan } from "./options.js";

const MIB = 1024 * 1024;
/** The mode of a file in a mounted Secret. `fsGroup` lets the group read it, whatever mode we ask for. */
const GROUP_READABLE = 0o440;

/** Renders the pod of a host. It runs `serve`. The StatefulSet claims its volume at {@link VOLUME}. */
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

/** Renders the pod for one run of gc. Like a host, the pod has a name in the fleet. Its state folder ends with the pod. */
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
    resources: { requests: { cpu: "50m", memory: "128Mi" } },
  });
  return {
    ...spec,
    restartPolicy: "Never",
    volumes: [...(spec.volumes ?? []), { name: "state", emptyDir: {} }],
  };
}

function pod(plan: Plan, main: IIoK8sApiCoreV1Container): IIoK8sApiCoreV1PodSpec {
  return {
    // Otherwise, a Service named copilotfleet makes Kubernetes set COPILOTFLEET_PORT and similar variables in the pod.
    enableServiceLinks: false,
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
  const { deployment, names } = plan;
  const { userTokenVariables } = deployment.settings;
  return {
    name,
    image: deployment.image,
    command: [...layout.INIT, layout.COMMAND],
    args,
    workingDir: layout.VOLUME,
    env: environment(plan),
    ...(userTokenVariables === null ? {} : { envFrom: [{ secretRef: { name: names.userTokens } }] }),
    securityContext: {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    },
    volumeMounts: mounts(plan),
  };
}

function hostContainer(plan: Plan): Partial<IIoK8sApiCoreV1Container> {
  const { capacity } = plan.deployment;
  const { names, options } = plan;
  const probe = (path: string) => ({ httpGet: { path, port: "metrics" }, timeoutSeconds: 3 });
  return {
    ports: [
      { name: "door", containerPort: layout.DOOR_PORT },
      { name: "metrics", containerPort: layout.METRICS_PORT },
    ],
    env: [
      { name: "COPILOTFLEET_HOST_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
      {
        name: "COPILOTFLEET_HOST_ADVERTISE",
        value: `$(COPILOTFLEET_HOST_NAME).${names.hosts}.${options.namespace}.svc:${layout.DOOR_PORT}`,
      },
      ...environment(plan),
    ],
    resources: {
      requests: {
        cpu: `${processorMillis(capacity)}m`,
        memory: `${memoryBytes(capacity) / MIB}Mi`,
      },
    },
    // A host may take long to adopt many servers. Kubernetes runs no other probe until the startup probe succeeds.
    startupProbe: { ...probe("/healthz"), periodSeconds: 2, failureThreshold: 60 },
    readinessProbe: { ...probe("/readyz"), periodSeconds: 5, failureThreshold: 2 },
    // A restart of the container ends all its servers, so only a failure of one minute causes it.
    livenessProbe: { ...probe("/healthz"), periodSeconds: 10, failureThreshold: 6 },
    lifecycle: { preStop: { exec: { command: ["sleep", String(LEAVE_ENDPOINTS_SECONDS)] } } },
  };
}

function environment({ deployment, names }: Plan): IIoK8sApiCoreV1EnvVar[] {
  const plain = Object.entries(layout.ENVIRONMENT).map(([name, value]) => ({ name, value }));
  const shared =
    deployment.storage === "shared" ? [{ name: "COPILOTFLEET_STORAGE_SHARED", value: layout.SHARED_FOLDER }] : [];
  const secret = deployment.settings.secrets.map(({ name, required }) => ({
    name,
    valueFrom: {
      secretKeyRef: {
        name: name === STORE_VARIABLE ? names.redisSecret : names.secret,
        key: name,
        ...(required ? {} : { optional: true }),
      },
    },
  }));
  return [...plain, ...shared, ...secret];
}

function mounts({ deployment }: Plan): IIoK8sApiCoreV1VolumeMount[] {
  return [
    { name: "state", mountPath: layout.VOLUME },
    ...(deployment.storage === "shared" ? [{ name: "shared", mountPath: layout.SHARED_VOLUME }] : []),
    { name: "config", mountPath: layout.CONFIG_FOLDER, readOnly: true },
    ...(deployment.settings.tokenFiles === null
      ? []
      : [{ name: "github-tokens", mountPath: layout.TOKENS_FOLDER, readOnly: true }]),
    { name: "scratch", mountPath: layout.SCRATCH },
  ];
}

function volumes({ deployment, names }: Plan): IIoK8sApiCoreV1Volume[] {
  const { tokenFiles } = deployment.settings;
  return [
    ...(deployment.storage === "shared"
      ? [{ name: "shared", persistentVolumeClaim: { claimName: names.shared } }]
      : []),
    { name: "config", configMap: { name: names.config } },
    ...(tokenFiles === null
      ? []
      : [
          {
            name: "github-tokens",
            secret: tokenFiles.perUser
              ? { secretName: names.userTokens, defaultMode: GROUP_READABLE }
              : {
                  secretName: names.secret,
                  defaultMode: GROUP_READABLE,
                  items: [{ key: tokenFiles.name, path: tokenFiles.name }],
                },
          },
        ]),
    { name: "scratch", emptyDir: {} },
  ];
}
