import { isDeepStrictEqual } from "node:util";
import { FleetError } from "../errors.js";
import type { Registry, SessionRecord, Store, TokenRecord } from "./store.js";

/** Records that are written together. */
const AT_ONCE = 50;

/**
 * All that one store hands over to another. Leases are not: nobody may hold one meanwhile. Where users were placed is not
 * either: their sessions say where they are, and new ones are placed anew.
 */
export interface Contents {
  registry: Registry;
  sessions: SessionRecord[];
  tokens: TokenRecord[];
  highestFence: number;
}

export async function readContents(store: Store): Promise<Contents> {
  const registry = await store.readRegistry();
  const sessions = await store.listSessions();
  sessions.sort((a, b) => (a.id < b.id ? -1 : 1));
  const tokens = await store.listTokens();
  tokens.sort((a, b) => (a.id < b.id ? -1 : 1));
  return { registry, sessions, tokens, highestFence: await store.highestFence() };
}

export function isEmpty({ registry, sessions, tokens }: Contents): boolean {
  return Object.keys(registry.servers).length === 0 && sessions.length === 0 && tokens.length === 0;
}

/**
 * Writes the contents to a store that has none, and reads both back. When that fails, or is interrupted, what was written
 * is taken out again. The source is only read.
 *
 * @throws FleetError `FLEET_STATE_BUSY` when the source changed meanwhile; the signal's own reason.
 */
export async function copyContents(contents: Contents, from: Store, to: Store, signal: AbortSignal): Promise<void> {
  const ids: string[] = [];
  const tokens: string[] = [];
  try {
    // First, so that no lease on what follows can be numbered too low.
    await to.raiseFences(contents.highestFence);
    for (let at = 0; at < contents.sessions.length; at += AT_ONCE) {
      signal.throwIfAborted();
      const part = contents.sessions.slice(at, at + AT_ONCE);
      ids.push(...part.map(({ id }) => id));
      await allDone(part.map((record) => to.createSession(adapted(record, to))));
    }
    for (const token of contents.tokens) {
      signal.throwIfAborted();
      tokens.push(token.id);
      await to.createToken(token);
    }
    signal.throwIfAborted();
    await to.updateRegistry((draft) => {
      const { servers, ...rest } = contents.registry;
      Object.assign(draft, rest);
      Object.assign(draft.servers, servers);
    });
    await verify(contents, from, to);
    signal.throwIfAborted();
  } catch (error) {
    await takeBack(contents, { ids, tokens }, to).catch((again: unknown) => {
      const why = [error, again].map((each) => (each instanceof Error ? each.message : String(each)));
      throw new FleetError("FLEET_STORE_OCCUPIED", `What was copied could not be taken back: ${why.join(" / ")}`, {
        suggestions: ["Clear the target away, and run the command again."],
        cause: error,
      });
    });
    throw error;
  }
}

/** Waits for all of them, also when one fails: what is still being written could not be taken back. */
async function allDone(writes: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(writes)).find((write) => write.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

async function verify(contents: Contents, from: Store, to: Store): Promise<void> {
  const written = await readContents(to);
  const adaptedContents = { ...contents, sessions: contents.sessions.map((record) => adapted(record, to)) };
  if (!isDeepStrictEqual(records(written), records(adaptedContents))) {
    throw new FleetError("FLEET_STATE_BUSY", "What was copied reads back otherwise: somebody writes to the target.", {
      suggestions: ["Let nobody use the target, and run the command again."],
    });
  }
  if (!isDeepStrictEqual(await readContents(from), contents)) {
    throw new FleetError("FLEET_STATE_BUSY", "The fleet changed while it was copied: what was copied is taken back.", {
      suggestions: ["Run the command again while nobody uses the fleet."],
    });
  }
}

/** A session as the other store has it: on this host, in no term yet, or in a store that knows no hosts. */
function adapted({ host: _, term: __, ...record }: SessionRecord, { hosts }: Store): SessionRecord {
  return hosts === null ? record : { ...record, host: hosts.own };
}

function records({ registry, sessions, tokens }: Contents): unknown {
  return { registry, sessions, tokens };
}

/** What others wrote there stays. Fences stay as high as they were made: no lease is wrong by that. */
async function takeBack(
  { registry, sessions, tokens }: Contents,
  written: { ids: readonly string[]; tokens: readonly string[] },
  to: Store,
): Promise<void> {
  const ours = new Map(sessions.map((record) => [record.id, adapted(record, to)]));
  for (const token of tokens) {
    if (written.tokens.includes(token.id) && isDeepStrictEqual(await to.readToken(token.id), token))
      await to.deleteToken(token.id);
  }
  await to.deleteSessions(written.ids, (record) => isDeepStrictEqual(record, ours.get(record.id)));
  await to.updateRegistry((draft) => {
    for (const [id, server] of Object.entries(registry.servers)) {
      if (isDeepStrictEqual(draft.servers[id], server)) delete draft.servers[id];
    }
    if (draft.placed === registry.placed) delete draft.placed;
  });
}
