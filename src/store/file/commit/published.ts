import { readFileSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { isObject, parseObject } from "../../../config/values/json.js";
import { SCHEMA } from "../../../model/registry.js";
import { newerError } from "../../failures.js";
import { readIfThere } from "../failures.js";
import { keepCopy } from "./damage.js";
import { closeQuietly, scratchName, unlinkQuietly, writeNewFile } from "./durable.js";

/*
 * `registry.json`: a copy of the newest registry, formatted for people and scripts. The fleet uses it only if the
 * newest revisions are damaged or missing. A writer that was suspended may replace a newer copy with an old one. That
 * writer then finds the newer revision and copies it again. If the writer is killed before that, the next commit writes
 * a new copy.
 */

const MAX_ROUNDS = 3;

export type Published =
  | { kind: "missing" }
  | { kind: "good"; rev: number; data: string }
  | { kind: "damaged"; reason: string };

export function publishedPath(root: string): string {
  return join(root, "registry.json");
}

export function readPublished(path: string): Published {
  const bytes = readIfThere(path, () => readFileSync(path));
  if (bytes === undefined) return { kind: "missing" };
  if (bytes.length === 0) return { kind: "damaged", reason: "it is empty" };
  const parsed = parseObject(bytes.toString("utf8"));
  if (parsed === undefined) return { kind: "damaged", reason: "it is not valid JSON" };
  const { schema, rev, ...registry } = parsed;
  if (typeof schema === "number" && schema > SCHEMA) throw newerError(path, schema);
  if (schema !== SCHEMA || typeof rev !== "number" || !Number.isSafeInteger(rev) || !hasServers(registry)) {
    return { kind: "damaged", reason: "it does not have the shape of a registry" };
  }
  return { kind: "good", rev, data: JSON.stringify(registry) };
}

/**
 * Whether the copy has the shape of a registry. This check is stricter than that of a revision, because people may edit
 * this file.
 */
function hasServers({ servers }: Record<string, unknown>): boolean {
  if (!isObject(servers)) return false;
  return Object.entries(servers).every(([id, server]) => isObject(server) && server.id === id);
}

interface Revision {
  rev: number;
  data: string;
}

/**
 * Writes the revision `first` to `registry.json`. If a newer revision exists afterwards, writes that one, too, because
 * this process may have overwritten a newer copy. The rounds are limited, because new revisions may keep coming, and
 * their writers also write copies.
 */
export async function publish(
  root: string,
  first: Revision,
  newerThan: (rev: number) => Revision | undefined,
): Promise<void> {
  let next: Revision | undefined = first;
  for (let round = 0; round < MAX_ROUNDS && next !== undefined; round++) {
    await replaceCopy(root, next);
    next = newerThan(next.rev);
  }
}

async function replaceCopy(root: string, { rev, data }: Revision): Promise<void> {
  const path = publishedPath(root);
  const temp = join(root, scratchName("tmp"));
  const text = JSON.stringify({ schema: SCHEMA, rev, ...(JSON.parse(data) as object) }, null, 2);
  closeQuietly(await writeNewFile(temp, Buffer.from(`${text}\n`)));
  try {
    if (isDamaged(path)) await keepCopy(path, isDamaged);
    await rename(temp, path);
  } catch (error) {
    unlinkQuietly(temp);
    throw error;
  }
}

function isDamaged(path: string): boolean {
  return readPublished(path).kind === "damaged";
}
