import { isIP } from "node:net";
import { parse } from "yaml";
import { quote } from "../base/errors.js";
import { countOf } from "../base/values/text.js";
import { findKey } from "../config/keys.js";
import type { Config } from "../config/schema.js";
import { checkExposed, checkSandbox, type DeployOptions, describe, type Loaded, unfit } from "./deployment.js";
import { inVariables, type SecretFile, type Settings, secretPath } from "./settings.js";
import { processLimit } from "./sizing.js";
import { commented, fill, fillNotices, inCompose } from "./template.js";

/** The port of the first host's front door. Each further host gets the next port. */
const DOOR_PORT = 4300;

/**
 * Renders the fleet as a Compose file. Each host is a separate service, because each has its own name and volume. The
 * file includes a Redis if the hosts need one and the configuration does not name one that they can reach.
 *
 * The containers get settings as variables, and secrets as mounted files. Compose could provide a configuration file,
 * or a secret from a variable, only by copying it into the container, whose file system is read-only
 * (https://github.com/docker/compose/issues/12031).
 */
export function renderCompose(loaded: Loaded, options: DeployOptions) {
  checkSandbox(loaded.config, "Docker's filter of system calls");
  const { capacity, settings, origins, view } = describe(loaded, options, { startsRedis: true });
  const { secrets, passedOn } = settings;
  const port = publishedPort(loaded.config, view.replicas);
  const forFleet = [...new Map(secrets.filter(({ perUser }) => !perUser).map((one) => [one.name, one])).values()];
  const named = forFleet.flatMap(({ name, source }) => (source === null ? [name] : []));
  const ofUsers = secrets.filter(({ perUser }) => perUser);
  const userVariables = ofUsers.flatMap(({ name, source }) => (source === null ? [name] : []));
  const all = {
    ...view,
    hosts: Array.from({ length: view.replicas }, (_, index) => ({
      host: `host-${index + 1}`,
      doorPort: DOOR_PORT + index,
      published: port === null ? null : showAddress(loaded.config, port === 0 ? "" : port + index),
      origins: [...new Set([...origins, `${view.scheme}://host-${index + 1}:4380`])].join(","),
    })),
    several: view.replicas > 1,
    firstPort: port === null || port === 0 ? null : port - 1,
    variables: [
      ...variablesOf(settings),
      ...inVariables(secrets).map((one) => ({ variable: one.variable, value: secretPath(one) })),
    ],
    passedOn: passedOn.map((variable) => ({ variable, reference: `\${${variable}:-}` })),
    secretNames: forFleet.map(({ name }) => name),
    secretFiles: forFleet.map(({ name, source }) => ({ name, path: source })),
    hasSecrets: secrets.length > 0,
    hasFiles: forFleet.length > 0 || view.ownRedis,
    named: named.join(", "),
    userVariables: userVariables.join(", "),
    userFolder: ofUsers.map(folderOf).find((folder) => folder !== null),
    processes: processLimit(capacity),
  };
  const notices = fillNotices("compose/notices.txt", all);
  const yaml = commented(notices) + fill("compose/compose.yaml", all, inCompose);
  return { compose: parse(yaml) as Record<string, unknown>, notices, yaml };
}

/**
 * The port at which this machine publishes the first host's HTTP API. Each further host gets the next port. Null
 * without `serve.http`, and 0 if Docker chooses the ports.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID` when `serve.http` is not an IP address, when one of the ports is used by a
 * front door or is above 65535, or when other machines can reach the address without TLS.
 */
function publishedPort(config: Config, replicas: number): number | null {
  const { serve } = config;
  if (serve.http === null) return null;
  const { host, port } = serve.http;
  if (host !== "localhost" && isIP(host) === 0) {
    throw unfit(`serve.http is ${quote(`${host}:${port}`)}, but Compose publishes ports only at IP addresses`, [
      "Set serve.http to an IP address and a port, such as 127.0.0.1:4380.",
    ]);
  }
  checkExposed("http", config, "so tokens and conversations would cross the network in plain text");
  const last = port + replicas - 1;
  if (port !== 0 && (last > 65_535 || (port < DOOR_PORT + replicas && last >= DOOR_PORT))) {
    const ports = `the ports from ${port} to ${last}`;
    throw unfit(`With ${countOf(replicas, "host")}, the HTTP API has ${ports}, which are not all free for it`, [
      `Set serve.http to a port from ${DOOR_PORT + replicas} to ${65_536 - replicas}.`,
    ]);
  }
  return port;
}

/** The part of a published port that names this machine's address and port, such as `127.0.0.1:4380`. */
function showAddress({ serve }: Config, port: number | ""): string {
  const host = serve.http?.host ?? "localhost";
  return `${host === "localhost" ? "127.0.0.1" : isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}

/** The settings as environment variables. */
function variablesOf({ values }: Settings): { variable: string; value: string }[] {
  return [...values].map(([key, { value }]) => {
    const found = findKey(key);
    const variable = found?.variable ?? key;
    if (found?.rule.json === true) return { variable, value: JSON.stringify(value) };
    if (Array.isArray(value) && value.some((item) => String(item).includes(","))) {
      throw unfit(
        `${key} has an item with a comma, but Compose gets the settings as variables, where commas separate items`,
        [`Set ${key} without commas in its items.`],
      );
    }
    return { variable, value: Array.isArray(value) ? value.join(",") : String(value) };
  });
}

/** The folder on this machine that has a secret file for each user; null if the files come from variables. */
function folderOf({ source }: SecretFile): string | null {
  const folder = source?.slice(0, source.lastIndexOf("/")) ?? null;
  if (folder?.includes("{user}") === true) {
    throw unfit(
      'auth.githubToken has "{user}" in the name of a folder, but only one folder with all token files is mounted',
      ['Use "{user}" only in the name of the file.'],
    );
  }
  return folder;
}
