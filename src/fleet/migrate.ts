import { existsSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, type Suggestion } from "../base/errors.js";
import type { OnProgress } from "../base/progress.js";
import { ALLOWED_REDIS_URL, readRedisUrl, showRedisUrl } from "../base/values/network.js";
import { shellQuote } from "../base/values/text.js";
import { ALLOWED_PLAINTEXT, isPlaintext } from "../config/checks.js";
import { loadConfig } from "../config/load/load.js";
import { invalidValue, type Origin } from "../config/problem.js";
import type { Config } from "../config/schema.js";
import type { FleetOptions } from "../hosts/options.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import { liveSupervisor } from "../servers/admission.js";
import { holderOf } from "../servers/claims.js";
import { type Contents, copyContents, countOfTokens, isEmpty, readContents, sessionsIn } from "../store/copy.js";
import { refuseErased } from "../store/purges.js";
import type { SignatureFinding, Store } from "../store/store.js";
import { openState, storeUrl } from "./state.js";

/** The files and folders that this command writes in the state folder when it copies to the file store. */
const RECORDS = ["registry.json", ...["state.db", "host.db"].flatMap((name) => [name, `${name}-wal`, `${name}-shm`])];

const origin: Origin = { from: "flag", name: "--to" };

interface MigrateOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  configFile?: string;
  /** "file", or a Redis URL. */
  to: string;
  /** Called while session and token records are being copied. */
  onProgress?: OnProgress;
  signal: AbortSignal;
}

/** The result of a migration. It shows the URLs of stores without their secrets. */
export interface MigrateResult {
  from: string;
  to: string;
  servers: number;
  sessions: number;
  tokens: number;
  highestFence: number;
  /** The setting that makes the fleet use the copy. Every host needs it. */
  setting: { store: string };
  warnings: string[];
}

/**
 * Copies the recorded state from the configured store to another store, which must be empty, and verifies the copy. The
 * configured store does not change, and the fleet uses it until the configuration names the other store. After a
 * failure, removes the copied records from the other store.
 */
export async function migrateStore(options: MigrateOptions): Promise<MigrateResult> {
  const { config, stateRoot } = loadConfig(options);
  assertTarget(options, config);
  const [from, to] = [show(storeUrl(config)), show(options.to)];
  if (from === to) {
    const message = `--to is ${quote(to)}, the store that the fleet uses now, so there is nothing to copy. Allowed: another store`;
    throw new FleetError("FLEET_USAGE_INVALID", message, {
      suggestions: [`copilotfleet store migrate --to ${to === "file" ? "redis://HOST:6379/0" : "file"}`],
    });
  }
  const source = openState(config, stateRoot, options.env);
  const target = openState(config, stateRoot, options.env, options.to);
  try {
    // The other store would not record an unfinished purge, so the user's data would come back.
    for (const { user } of await source.purges.list()) await refuseErased(source, user);
    const leftOut: string[] = [];
    const contents = await readContents(source, (message) => void leftOut.push(message));
    await refuseUsed(contents, source);
    if (!isEmpty(await readContents(target))) throw occupied(options.to, stateRoot);
    const left = await leftBehind(source, from);
    await copyContents(contents, source, target, options);
    return {
      from,
      to,
      servers: Object.keys(contents.registry.servers).length,
      sessions: sessionsIn(contents).length,
      tokens: countOfTokens(contents),
      highestFence: contents.highestFence,
      setting: { store: to },
      warnings: [...left, ...leftOut, ...source.takeWarnings(), ...target.takeWarnings()],
    };
  } finally {
    await Promise.all([source.close(), target.close()]);
  }
}

function assertTarget({ to }: MigrateOptions, config: Config): void {
  if (to === "file") return;
  if (readRedisUrl(to) === null) {
    const error = invalidValue("store", to, `"file", or ${ALLOWED_REDIS_URL}`, origin);
    // Suggest the other kind of store, because the store in use cannot be the target.
    const example = config.store.kind === "file" ? "redis://127.0.0.1:6379/0" : "file";
    throw error.reworded(() => ({ suggestions: [`For example, write --to ${example}.`] }));
  }
  if (isPlaintext(to) && !config.insecure) throw invalidValue("store", to, ALLOWED_PLAINTEXT, origin);
}

function show(url: string): string {
  const target = readRedisUrl(url);
  return target === null ? url : showRedisUrl(target);
}

/** Returns warnings about the parts of the state that are not copied. */
async function leftBehind({ kind, usage, purges }: Store, name: string): Promise<string[]> {
  const left: string[] = [];
  if (kind !== "file" && (await usage.read({ from: 0, to: Date.now() + 1, by: "day" })).length > 0)
    left.push(`The ledger stays in ${quote(name)}: in the other store, usage and the budgets of tokens begin again.`);
  const lost = new Set((await purges.list()).flatMap(({ pending }) => pending.filter((host) => host !== null)));
  if (lost.size > 0)
    left.push(
      `The records of purges for hosts that are gone (${[...lost].map(quote).join(", ")}) stay in ${quote(name)}: with the other store, a host that comes back does not erase what it has of purged users.`,
    );
  return left;
}

/** Refuses to copy a fleet that other hosts or processes use. */
async function refuseUsed(contents: Contents, { hosts, leases }: Store): Promise<void> {
  const { registry } = contents;
  const sessions = sessionsIn(contents);
  if (hosts !== null) {
    // This host cannot copy the registries and local files of other hosts.
    const others = [
      ...(await hosts.list()).map(({ name }) => name),
      ...sessions.flatMap(({ host, from }) => [host, from?.host].filter((name) => name !== undefined)),
    ].filter((name) => name !== hosts.own);
    if (others.length > 0) {
      const list = [...new Set(others)].sort().map(quote).join(", ");
      const message = `The fleet is also on other hosts (${list}). Only a fleet on one host can be copied.`;
      const advice = "Move their users to this host, and then run copilotfleet drain on the other hosts.";
      throw new FleetError("FLEET_SERVER_CONFLICT", message, { suggestions: ["copilotfleet top --once", advice] });
    }
  }
  const pid = liveSupervisor(registry)?.process.pid;
  if (pid !== undefined) {
    const message = `The fleet is supervised by process ${pid}, which would keep using the old store.`;
    throw new FleetError("FLEET_SUPERVISOR_RUNNING", message, {
      suggestions: [`kill -TERM ${pid}`, "Run the command again when it has ended."],
    });
  }
  // A process with another boot id counts, because it may be alive on another machine.
  const moving = Object.values(registry.servers).filter(
    ({ claim }) => claim !== null && (claim.bootId !== ownIdentity().bootId || isAlive(claim)),
  );
  if (moving.length > 0) {
    const names = moving.map((server) => `${server.id} (${holderOf(server)})`).join(", ");
    throw new FleetError("FLEET_SERVER_CONFLICT", `Servers are being started or stopped at the moment: ${names}.`, {
      suggestions: ["copilotfleet ps", "Run the command again when they have started or stopped."],
    });
  }
  for (const { id } of sessions) {
    const lease = await leases.read(id);
    if (lease === null) continue;
    throw new FleetError("FLEET_SESSION_LOCKED", `Session ${quote(id)} is locked by ${quote(lease.holder)}.`, {
      suggestions: [`copilotfleet lock ${id} --show`, "Run the command again when nobody uses the fleet."],
    });
  }
}

function occupied(to: string, stateRoot: string): FleetError {
  const target = readRedisUrl(to);
  const kept = RECORDS.filter((name) => existsSync(join(stateRoot, name))).join(" ");
  const clear: Suggestion =
    target === null
      ? `mkdir ${shellQuote(`${stateRoot}/before`)} && cd ${shellQuote(stateRoot)} && mv ${kept} before/`
      : `Use another database, or another fleet in it, such as ${showRedisUrl({ ...target, fleet: "NAME" })}.`;
  return new FleetError("FLEET_TARGET_EXISTS", `The store ${quote(show(to))} is not empty: nothing was copied.`, {
    suggestions: [clear],
  });
}

interface SignOptions extends Pick<FleetOptions, "env" | "cwd" | "configFile"> {
  /** Whether to also sign records without a signature of a key that this host has. */
  all: boolean;
  /** With `all`, called with the records before any is signed. May throw to prevent the signing. */
  confirm: (records: readonly SignatureFinding[]) => Promise<void>;
}

export interface SignResult {
  signed: SignatureFinding[];
  /** The records that were left as they are, because no key of this host signed them. */
  refused: SignatureFinding[];
}

/** Signs the records in Redis that an earlier key of this host signed; with `all`, every record. */
export async function signRecords({ all, confirm, ...options }: SignOptions): Promise<SignResult> {
  const { config, stateRoot } = loadConfig({ env: process.env, cwd: process.cwd(), ...options });
  const store = openState(config, stateRoot, options.env ?? process.env);
  const { signatures } = store;
  if (signatures === null) {
    throw new FleetError("FLEET_USAGE_INVALID", "The store is in files, and only records in Redis are signed.", {
      suggestions: ["copilotfleet config get store"],
    });
  }
  try {
    signatures.allowNewKey();
    const found = await signatures.find();
    const isForeign = ({ verdict }: SignatureFinding) => verdict !== "outdated";
    // Stop if this host does not have the key of the other hosts. Otherwise, it would create a new key, and the other
    // hosts could no longer use the records.
    if (!all && signatures.keyId === null && found.some(isForeign)) throw signatures.missingKey();
    const wanted = found.filter((finding) => all || !isForeign(finding));
    if (all && wanted.length > 0) await confirm(wanted);
    return { signed: await signatures.sign(wanted), refused: found.filter((finding) => !wanted.includes(finding)) };
  } finally {
    await store.close();
  }
}
