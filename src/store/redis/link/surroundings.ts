import { FleetError } from "../../../errors.js";
import { cli, Interruption } from "./failures.js";

/** Some properties of the Redis server. A field is null if the server forbids the command that reads it. */
export interface Surroundings {
  info: string | null;
  save: string | null;
  appendOnly: string | null;
}

/** The first version of Redis that has all features that we use. */
const OLDEST = [6, 2] as const;

/**
 * Decides whether a Redis can be trusted with the state.
 *
 * @returns warnings, each as a sentence
 * @throws FleetError `FLEET_STORE_UNSAFE` when the server is too old, or evicts keys when its memory is full.
 * @throws Interruption while the server loads its data.
 */
export function judge({ info, save, appendOnly }: Surroundings, where: string): string[] {
  if (info === null) {
    return [
      `Redis at ${where} does not show its settings, because INFO is forbidden. Make sure that it never evicts keys.`,
    ];
  }
  const facts = parseInfo(info);
  if (facts.get("loading") === "1") throw new Interruption("it is loading its data");
  refuseOld(facts.get("redis_version"), where);
  refuseEviction(facts.get("maxmemory_policy"), where);
  const warnings: string[] = [];
  if (facts.get("role") === "slave") {
    warnings.push(`Redis at ${where} is a replica, so its data may be old, and it takes no writes.`);
  } else if (Number(facts.get("connected_slaves") ?? 0) > 0) {
    warnings.push(
      `Redis at ${where} has replicas. A failover loses everything that the replica has not received yet, including acknowledged changes and leases.`,
    );
  }
  if (facts.get("cluster_enabled") === "1") {
    warnings.push(
      `Redis at ${where} is part of a cluster: moving the fleet's slot to another node interrupts the fleet.`,
    );
  }
  if (appendOnly === "no" && save === "") {
    warnings.push(
      `Redis at ${where} keeps nothing on disk (appendonly no, save ""), so a restart loses all state. To fix this: ${cli(where)} CONFIG SET appendonly yes`,
    );
  }
  return warnings;
}

export function isReplica({ info }: Surroundings): boolean {
  return info !== null && parseInfo(info).get("role") === "slave";
}

function parseInfo(info: string): Map<string, string> {
  return new Map(
    info.split(/\r?\n/).flatMap((line) => {
      const at = line.indexOf(":");
      return at === -1 || line.startsWith("#") ? [] : [[line.slice(0, at), line.slice(at + 1)] as const];
    }),
  );
}

function refuseOld(version: string | undefined, where: string): void {
  const [major = 0, minor = 0] = (version ?? "").split(".").map(Number);
  if (version === undefined || major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) return;
  const what = `Redis at ${where} is version ${version}: ${OLDEST.join(".")} or later is needed.`;
  throw new FleetError("FLEET_STORE_UNSAFE", what, { suggestions: [`Install Redis ${OLDEST.join(".")} or later.`] });
}

function refuseEviction(policy: string | undefined, where: string): void {
  if (policy === undefined || policy === "noeviction") return;
  const what = `Redis at ${where} evicts keys when its memory is full (maxmemory-policy ${policy}): it would forget servers, sessions and leases.`;
  throw new FleetError("FLEET_STORE_UNSAFE", what, {
    suggestions: [
      `${cli(where)} CONFIG SET maxmemory-policy noeviction`,
      "Set maxmemory-policy in redis.conf too, or the old value is back after a restart. Use a separate Redis for caches.",
    ],
  });
}
