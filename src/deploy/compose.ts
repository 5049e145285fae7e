import { isIP } from "node:net";
import { findKey } from "../config/keys.js";
import type { Layer } from "../config/load/layers.js";
import type { Address } from "../config/rules.js";
import type { Config } from "../config/schema.js";
import { countOf } from "../config/values/text.js";
import { quote } from "../errors.js";
import * as layout from "./container.js";
import { type Deployment, type DeployOptions, describe } from "./deployment.js";
import { checkExposed, checkSandbox, unfit } from "./problem.js";
import { inVariables, type SecretFile, STORE_VARIABLE } from "./settings.js";
import { memoryBytes, processLimit, SCRATCH_MIB } from "./sizing.js";
import { yamlStream } from "./yaml.js";

const REDIS_IMAGE = "redis:7-bookworm";
/** The account of Redis in its image. */
const REDIS_UID = 999;
/** The secret with the password of Redis, as a line of its configuration. */
const REDIS_CONFIG = "redis.conf";

/**
 * The script of the health check. Node.js exits with 1 if the promise rejects. The script has no blanks, because Podman
 * 5.4 would split it at a blank.
 */
const READY = `fetch("http://127.0.0.1:${layout.METRICS_PORT}/readyz").then((r)=>{if(!r.ok)throw(r.status)})`;

/** The folder with a file for each secret, beside the Compose file. `COPILOTFLEET_SECRETS=DIR` names another folder. */
// biome-ignore lint/suspicious/noTemplateCurlyInString: filled in by docker compose
const SECRETS = "${COPILOTFLEET_SECRETS:-./secrets}";
const OF_USERS = "users";
const MAKE_PASSWORD = `umask 077; p=$(openssl rand -hex 32); echo "requirepass $p" >${REDIS_CONFIG}; echo "redis://:$p@redis:6379/0" >${STORE_VARIABLE}`;

/**
 * Renders the fleet as a Compose file. Each host is a separate service, because each has its own name and volume. The
 * file includes a Redis if the hosts need one and the configuration does not name one that they can reach.
 *
 * The containers get settings as variables, and secrets as mounted files. Compose could provide a configuration file,
 * or a secret from a variable, only by copying it into the container, whose file system is read-only
 * (https://github.com/docker/compose/issues/12031).
 */
export function renderCompose(
  loaded: { config: Config; given: Layer },
  options: DeployOptions,
): { compose: Record<string, unknown>; notices: string[]; yaml: string } {
  checkSandbox(loaded.config, "Docker's filter of system calls");
  const deployment = describe(loaded, options, true);
  const httpAt = publishedAt(loaded.config, deployment.replicas);
  const { name, replicas, storage, settings, ownRedis } = deployment;
  const hosts = Array.from({ length: replicas }, (_, index) => `host-${index + 1}`);
  const files = settings.secrets.filter(({ perUser }) => !perUser).map((secret) => [secret.name, sourceOf(secret)]);
  if (ownRedis) files.push([REDIS_CONFIG, `${SECRETS}/${REDIS_CONFIG}`]);
  const compose = {
    name,
    services: {
      ...(ownRedis ? { redis: redisService() } : {}),
      ...Object.fromEntries(hosts.map((host, index) => [host, hostService(deployment, { host, index, httpAt })])),
    },
    ...(files.length === 0 ? {} : { secrets: Object.fromEntries(files.map(([key, file]) => [key, { file }])) }),
    volumes: Object.fromEntries(
      [...hosts, ...(storage === "shared" ? ["shared"] : []), ...(ownRedis ? ["redis"] : [])].map((key) => [key, {}]),
    ),
  };
  const notices = [...composeNotices(deployment, httpAt), ...deployment.notices];
  return { compose, notices, yaml: yamlStream(notices, [{ value: compose }]) };
}

interface HostPlan {
  host: string;
  index: number;
  /** The address at which this machine publishes the first host's HTTP API. Null without the API. */
  httpAt: Address | null;
}

function hostService(deployment: Deployment, { host, index, httpAt }: HostPlan) {
  const { image, storage, settings, capacity, http, ownRedis } = deployment;
  const { secrets, passedOn } = settings;
  const fleetSecrets = new Set(secrets.filter(({ perUser }) => !perUser).map(({ name }) => name));
  return {
    image,
    hostname: host,
    restart: "unless-stopped",
    // PID 1 has to reap orphaned processes. `entrypoint` replaces the image's init, so use Docker's.
    init: true,
    entrypoint: [layout.COMMAND],
    command: ["serve"],
    user: `${layout.UID}:${layout.UID}`,
    working_dir: layout.VOLUME,
    read_only: true,
    tmpfs: [`${layout.SCRATCH}:mode=1777,size=${SCRATCH_MIB}m`],
    cap_drop: ["ALL"],
    security_opt: ["no-new-privileges:true"],
    environment: {
      ...layout.ENVIRONMENT,
      COPILOTFLEET_HOST_NAME: host,
      COPILOTFLEET_HOST_ADVERTISE: `${host}:${layout.DOOR_PORT}`,
      ...(storage === "shared" ? { COPILOTFLEET_STORAGE_SHARED: layout.SHARED_FOLDER } : {}),
      // Other containers reach the API by the name of its service.
      ...(http === null
        ? {}
        : layout.httpEnvironment([...http.origins, `${http.scheme}://${host}:${layout.HTTP_PORT}`])),
      ...Object.fromEntries(settingVariables(settings)),
      ...Object.fromEntries(inVariables(secrets).map((secret) => [secret.variable, layout.secretPath(secret)])),
      ...Object.fromEntries(passedOn.map((variable) => [variable, `\${${variable}:-}`])),
    },
    ...(fleetSecrets.size === 0
      ? {}
      : {
          secrets: [...fleetSecrets].map((source) => ({ source, target: `${layout.SECRETS_FOLDER}/${source}` })),
        }),
    volumes: [
      `${host}:${layout.VOLUME}`,
      ...(storage === "shared" ? [`shared:${layout.SHARED_VOLUME}`] : []),
      ...secrets.filter(({ perUser }) => perUser).map(userMount),
    ],
    ports: [
      `127.0.0.1:${layout.DOOR_PORT + index}:${layout.DOOR_PORT}`,
      ...(httpAt === null ? [] : [`${showAddress(httpAt, index)}:${layout.HTTP_PORT}`]),
    ],
    healthcheck: {
      test: ["CMD", "node", "-e", READY],
      interval: "10s",
      timeout: "5s",
      retries: 3,
      start_period: "60s",
    },
    stop_grace_period: `${deployment.stopGraceSeconds}s`,
    // This limit counts threads, too. With it, a server that starts programs without end harms only this container.
    pids_limit: processLimit(capacity),
    deploy: { resources: { reservations: { memory: `${memoryBytes(capacity) / (1024 * 1024)}M` } } },
    ...(ownRedis ? { depends_on: { redis: { condition: "service_healthy" } } } : {}),
  };
}

/**
 * The address at which this machine publishes the first host's HTTP API. Each further host gets the next port. Null
 * without `serve.http`.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID` when `serve.http` is not an IP address, when one of the ports is used by a
 * front door or is above 65535, or when other machines can reach the address without TLS.
 */
function publishedAt(config: Config, replicas: number): Address | null {
  const { serve } = config;
  if (serve.http === null) return null;
  const { port } = serve.http;
  const host = serve.http.host === "localhost" ? "127.0.0.1" : serve.http.host;
  if (isIP(host) === 0) {
    throw unfit(`serve.http is ${quote(`${host}:${port}`)}, but Compose publishes ports only at IP addresses`, [
      "Set serve.http to an IP address and a port, such as 127.0.0.1:4380.",
    ]);
  }
  checkExposed("http", config, "so tokens and conversations would cross the network in plain text");
  const last = port + replicas - 1;
  if (port !== 0 && (last > 65_535 || (port < layout.DOOR_PORT + replicas && last >= layout.DOOR_PORT))) {
    const ports = `the ports from ${port} to ${last}`;
    throw unfit(`With ${countOf(replicas, "host")}, the HTTP API has ${ports}, which are not all free for it`, [
      `Set serve.http to a port from ${layout.DOOR_PORT + replicas} to ${65_536 - replicas}.`,
    ]);
  }
  return { host, port };
}

/**
 * The part of a published port that names this machine's address and port, such as `127.0.0.1:4380`. Leaves out port 0,
 * so that Docker chooses a port.
 */
function showAddress({ host, port }: Address, index: number): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port === 0 ? "" : port + index}`;
}

function redisService() {
  return {
    image: REDIS_IMAGE,
    restart: "unless-stopped",
    // docs/redis.md explains why the fleet needs these settings of Redis.
    command: [
      ...["redis-server", `/run/secrets/${REDIS_CONFIG}`],
      ...["--appendonly", "yes", "--maxmemory-policy", "noeviction"],
    ],
    secrets: [REDIS_CONFIG],
    // The image's own account, so that Redis needs no right to switch to it.
    user: `${REDIS_UID}:${REDIS_UID}`,
    read_only: true,
    tmpfs: [`${layout.SCRATCH}:mode=1777,size=${SCRATCH_MIB}m`],
    cap_drop: ["ALL"],
    security_opt: ["no-new-privileges:true"],
    pids_limit: 100,
    volumes: ["redis:/data"],
    // Without the password, "redis-cli ping" ends with 0, too, as soon as Redis answers.
    healthcheck: { test: ["CMD", "redis-cli", "ping"], interval: "5s", timeout: "3s", retries: 12 },
    stop_grace_period: "30s",
  };
}

/** The settings as environment variables. */
function settingVariables({ values }: Deployment["settings"]): [variable: string, text: string][] {
  return [...values].map(([key, { value }]) => {
    const found = findKey(key);
    const variable = found?.variable ?? key;
    if (found?.rule.json === true) return [variable, literal(JSON.stringify(value))];
    const items = Array.isArray(value) ? value.map(String) : [];
    if (items.some((item) => item.includes(","))) {
      throw unfit(
        `${key} has an item with a comma, but Compose gets the settings as variables, where commas separate items`,
        [`Set ${key} without commas in its items.`],
      );
    }
    return [variable, literal(Array.isArray(value) ? items.join(",") : String(value))];
  });
}

/** The path of a secret on the machine that runs Compose. */
function sourceOf({ name, source }: SecretFile): string {
  return source === null ? `${SECRETS}/${name}` : literal(source);
}

/** Returns the mount of the folder that has a secret file for each user. */
function userMount({ source }: SecretFile): string {
  const folder = source === null ? `${SECRETS}/${OF_USERS}` : source.slice(0, source.lastIndexOf("/"));
  if (source !== null && folder.includes("{user}")) {
    throw unfit(
      'auth.githubTokenFile has "{user}" in the name of a folder, but only one folder with all token files is mounted',
      ['Use "{user}" only in the name of the file.'],
    );
  }
  return `${source === null ? folder : literal(folder)}:${layout.USER_SECRETS_FOLDER}:ro`;
}

/** Escapes "$", because Compose substitutes variables. */
function literal(text: string): string {
  return text.replaceAll("$", "$$$$");
}

function composeNotices({ settings, replicas, ownRedis }: Deployment, httpAt: Address | null): string[] {
  const { secrets } = settings;
  const named = secrets.filter(({ perUser, source }) => !perUser && source === null).map(({ name }) => name);
  const ofUsers = secrets.filter(({ perUser, source }) => perUser && source === null).map(({ name }) => name);
  return [
    named.length === 0
      ? []
      : `The folder secrets beside this file must hold ${[...new Set(named)].join(", ")}, with the value in a file of each name. COPILOTFLEET_SECRETS=DIR names another folder.`,
    ofUsers.length === 0 ? [] : `Its folder ${OF_USERS} must hold ${ofUsers.join(", ")}, with a file for each user.`,
    secrets.length === 0
      ? []
      : `These files must belong to uid ${layout.UID} and have mode 0600, because the fleet refuses files that others can read.`,
    ownRedis
      ? [
          `The folder must also hold ${REDIS_CONFIG}, which belongs to uid ${REDIS_UID} and has mode 0600. In the folder, this command creates a Redis password and writes it into both files:`,
          MAKE_PASSWORD,
        ]
      : [],
    replicas === 1
      ? []
      : `Host N listens at port ${layout.DOOR_PORT - 1} + N of this machine. Every host accepts every user.`,
    httpAt === null || httpAt.port === 0 || replicas === 1
      ? []
      : `The HTTP API of host N is at port ${httpAt.port - 1} + N.`,
  ].flat();
}
