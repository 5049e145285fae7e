import type { IIoK8sApiCoreV1Container } from "kubernetes-models/v1/Container";
import type { IIoK8sApiCoreV1EnvVar } from "kubernetes-models/v1/EnvVar";
import type { IIoK8sApiCoreV1PodSpec } from "kubernetes-models/v1/PodSpec";
import type { IIoK8sApiCoreV1Volume } from "kubernetes-models/v1/Volume";
import type { IIoK8sApiCoreV1VolumeMount } from "kubernetes-models/v1/VolumeMount";
import {
  COMMAND,
  CONFIG_FOLDER,
  DOOR_PORT,
  ENVIRONMENT,
  INIT,
  METRICS_PORT,
  SCRATCH,
  SHARED_FOLDER,
  SHARED_VOLUME,
  TOKENS_FOLDER,
  UID,
  VOLUME,
} from "../container.js";
import { LEAVE_ENDPOINTS_SECONDS } from "../grace.js";
import { STORE_VARIABLE } from "../settings.js";
import { memoryBytes, processorMillis } from "../sizing.js";
import type { Plan } from "./options.js";

const MIB = 1024 * 1024;
/** The mode that a file of a Secret has in the end: `fsGroup` adds the group's right to read, whatever is asked for. */
const GROUP_READABLE = 0o440;

/** The pod of a host: `serve`, with a volume of its own at {@link VOLUME} that the StatefulSet claims. */
export function hostPod(plan: Plan): IIoK8sApiCoreV1PodSpec {
  const { deployment } = plan;
  return {
    ...pod(plan, { ...container(plan, "serve", ["serve"]), ...hostContainer(plan) }),
    // preStop counts against it, too.
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

/** The pod of one run of gc: it has a name as a host, and what it writes of its own goes with it. */
export function gcPod(plan: Plan): IIoK8sApiCoreV1PodSpec {
  const gc = container(plan, "gc", ["gc"]);
  const spec = pod(plan, {
    ...gc,
    env: [
      { name: "COPILOTFLEET_HOST_NAME", value: plan.names.gc },
      // Kubernetes makes an emptyDir with mode 0777. The pod has no other user.
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
    // Kubernetes would put COPILOTFLEET_PORT and the like into the pod beside a Service of this name.
    enableServiceLinks: false,
    // Nothing here talks to Kubernetes.
    automountServiceAccountToken: false,
    securityContext: {
      runAsNonRoot: true,
      runAsUser: UID,
      runAsGroup: UID,
      fsGroup: UID,
      // "Always" would open every file of the state to the group at each start, connection tokens included.
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
    command: [...INIT, COMMAND],
    args,
    workingDir: VOLUME,
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
      { name: "door", containerPort: DOOR_PORT },
      { name: "metrics", containerPort: METRICS_PORT },
    ],
    env: [
      { name: "COPILOTFLEET_HOST_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
      {
        name: "COPILOTFLEET_HOST_ADVERTISE",
        value: `$(COPILOTFLEET_HOST_NAME).${names.hosts}.${options.namespace}.svc:${DOOR_PORT}`,
      },
      ...environment(plan),
    ],
    resources: {
      requests: {
        cpu: `${processorMillis(capacity)}m`,
        memory: `${memoryBytes(capacity) / MIB}Mi`,
      },
    },
    // A host that adopts many servers may take its time; until then nothing else is asked.
    startupProbe: { ...probe("/healthz"), periodSeconds: 2, failureThreshold: 60 },
    readinessProbe: { ...probe("/readyz"), periodSeconds: 5, failureThreshold: 2 },
    // Its end is the end of every server in the pod, so only what lasts a minute brings it about.
    livenessProbe: { ...probe("/healthz"), periodSeconds: 10, failureThreshold: 6 },
    lifecycle: { preStop: { exec: { command: ["sleep", String(LEAVE_ENDPOINTS_SECONDS)] } } },
  };
}

function environment({ deployment, names }: Plan): IIoK8sApiCoreV1EnvVar[] {
  const plain = Object.entries(ENVIRONMENT).map(([name, value]) => ({ name, value }));
  const shared = deployment.storage === "shared" ? [{ name: "COPILOTFLEET_STORAGE_SHARED", value: SHARED_FOLDER }] : [];
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
    { name: "state", mountPath: VOLUME },
    ...(deployment.storage === "shared" ? [{ name: "shared", mountPath: SHARED_VOLUME }] : []),
    { name: "config", mountPath: CONFIG_FOLDER, readOnly: true },
    ...(deployment.settings.tokenFiles === null
      ? []
      : [{ name: "github-tokens", mountPath: TOKENS_FOLDER, readOnly: true }]),
    { name: "scratch", mountPath: SCRATCH },
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
