import type { Layer } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";
import * as layout from "./container.js";
import { type Deployment, type DeployOptions, describe } from "./deployment.js";
import { unfit } from "./problem.js";
import { configText } from "./settings.js";
import { memoryBytes } from "./sizing.js";
import { yamlStream } from "./yaml.js";

/** This Redis has no password, because it can be reached only from the network of the Compose file. */
const OWN_REDIS = "redis://redis:6379/0";
const REDIS_IMAGE = "redis:7-bookworm";

/** The health check: Node exits with 1 if the promise rejects. Has no blanks, because Podman 5.4 would split it there. */
const READY = `fetch("http://127.0.0.1:${layout.METRICS_PORT}/readyz").then((r)=>{if(!r.ok)throw(r.status)})`;

/**
 * Renders the fleet as a Compose file. Needs Compose 2.23.1 or later, because the file contains the configuration. Each
 * host is a separate service, because each has its own name and volume. The file includes a Redis if the hosts need one
 * and the configuration does not name one that they can reach.
 */
export function renderCompose(
  loaded: { config: Config; given: Layer },
  options: DeployOptions,
): { compose: Record<string, unknown>; notices: string[]; yaml: string } {
  const deployment = describe(loaded, options, OWN_REDIS);
  const { name, replicas, storage, settings } = deployment;
  if (settings.userTokenVariables !== null) {
    throw unfit('auth.githubTokenEnv contains "{user}", but Compose can only pass on variables by their full names', [
      "Use auth.githubTokenFile or auth.githubTokenCommand.",
    ]);
  }
  const ownRedis = settings.file.store === OWN_REDIS;
  const hosts = Array.from({ length: replicas }, (_, index) => `host-${index + 1}`);
  const { tokenFiles } = settings;
  const file =
    tokenFiles === null
      ? settings.file
      : { ...settings.file, auth: { githubTokenFile: `${layout.TOKENS_FOLDER}/${tokenFiles.name}` } };
  const compose = {
    name,
    services: {
      ...(ownRedis ? { redis: redisService() } : {}),
      ...Object.fromEntries(hosts.map((host, index) => [host, hostService(deployment, host, index, ownRedis)])),
    },
    configs: { fleet: { content: literal(configText(file)) } },
    volumes: Object.fromEntries(
      [...hosts, ...(storage === "shared" ? ["shared"] : []), ...(ownRedis ? ["redis"] : [])].map((key) => [key, {}]),
    ),
  };
  const notices = [...composeNotices(deployment), ...deployment.notices];
  return { compose, notices, yaml: yamlStream(notices, [{ value: compose }]) };
}

function hostService(deployment: Deployment, host: string, index: number, ownRedis: boolean) {
  const { image, storage, settings, capacity } = deployment;
  const secrets = settings.secrets.map(({ name, required }) => [
    name,
    required ? `\${${name}:?a secret of the fleet}` : `\${${name}:-}`,
  ]);
  return {
    image,
    hostname: host,
    restart: "unless-stopped",
    // PID 1 has to reap orphaned processes. `entrypoint` leaves out the image's init, so use Docker's.
    init: true,
    entrypoint: [layout.COMMAND],
    command: ["serve"],
    user: `${layout.UID}:${layout.UID}`,
    working_dir: layout.VOLUME,
    read_only: true,
    tmpfs: [layout.SCRATCH],
    cap_drop: ["ALL"],
    security_opt: ["no-new-privileges:true"],
    environment: {
      ...layout.ENVIRONMENT,
      COPILOTFLEET_HOST_NAME: host,
      COPILOTFLEET_HOST_ADVERTISE: `${host}:${layout.DOOR_PORT}`,
      ...(storage === "shared" ? { COPILOTFLEET_STORAGE_SHARED: layout.SHARED_FOLDER } : {}),
      ...Object.fromEntries(secrets),
    },
    configs: [{ source: "fleet", target: `${layout.CONFIG_FOLDER}/${layout.CONFIG_FILE}` }],
    volumes: [
      `${host}:${layout.VOLUME}`,
      ...(storage === "shared" ? [`shared:${layout.SHARED_VOLUME}`] : []),
      ...tokenMounts(deployment),
    ],
    ports: [`127.0.0.1:${layout.DOOR_PORT + index}:${layout.DOOR_PORT}`],
    healthcheck: {
      test: ["CMD", "node", "-e", READY],
      interval: "10s",
      timeout: "5s",
      retries: 3,
      start_period: "60s",
    },
    stop_grace_period: `${deployment.stopGraceSeconds}s`,
    deploy: { resources: { reservations: { memory: `${memoryBytes(capacity) / (1024 * 1024)}M` } } },
    ...(ownRedis ? { depends_on: { redis: { condition: "service_healthy" } } } : {}),
  };
}

function redisService() {
  return {
    image: REDIS_IMAGE,
    restart: "unless-stopped",
    // docs/redis.md explains why the fleet needs these settings of Redis.
    command: ["redis-server", "--appendonly", "yes", "--maxmemory-policy", "noeviction"],
    security_opt: ["no-new-privileges:true"],
    volumes: ["redis:/data"],
    healthcheck: { test: ["CMD", "redis-cli", "ping"], interval: "5s", timeout: "3s", retries: 12 },
    stop_grace_period: "30s",
  };
}

/** Mounts the token file, or the folder with one file for each user. */
function tokenMounts({ settings: { tokenFiles } }: Deployment): string[] {
  if (tokenFiles === null) return [];
  const { path, name, perUser } = tokenFiles;
  if (!perUser) return [literal(`${path}:${layout.TOKENS_FOLDER}/${name}:ro`)];
  const folder = path.slice(0, path.lastIndexOf("/"));
  if (folder.includes("{user}")) {
    throw unfit(
      'auth.githubTokenFile has "{user}" in the name of a folder, but only one folder with all token files is mounted',
      ['Use "{user}" only in the name of the file.'],
    );
  }
  return [literal(`${folder}:${layout.TOKENS_FOLDER}:ro`)];
}

/** Escapes "$", because Compose substitutes variables. */
function literal(text: string): string {
  return text.replaceAll("$", "$$$$");
}

function composeNotices({ settings, replicas }: Deployment): string[] {
  const names = settings.secrets.filter(({ required }) => required).map(({ name }) => name);
  return [
    names.length === 0
      ? []
      : `Set ${names.join(", ")} in the environment of docker compose, or in a file: docker compose --env-file FILE up`,
    settings.tokenFiles === null
      ? []
      : `Token files must belong to uid ${layout.UID} and have mode 0600, because the fleet refuses files that others can read.`,
    replicas === 1
      ? []
      : `Host N listens at port ${layout.DOOR_PORT - 1} + N of this machine. Every host accepts every user.`,
  ].flat();
}
