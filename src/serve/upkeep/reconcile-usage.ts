import type { Config } from "../../config/schema.js";
import { isObject } from "../../config/values/json.js";
import { Pseudonyms } from "../../events/pseudonyms.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { creditsIn } from "../../model/usage/credits.js";
import {
  type LedgerLine,
  ledgerModel,
  UNREPORTED,
  type UsageNumbers,
  type UsagePart,
} from "../../model/usage/usage.js";
import { hasKey } from "../../models/provider.js";
import type { HistoryEvent } from "../../runtime/history/event.js";
import { LineSplitter } from "../../runtime/history/line.js";
import { nextPiece } from "../../runtime/history/part.js";
import { SessionEvents } from "../../runtime/history/session-events.js";
import { lastWrite } from "../../runtime/history/session-state.js";
import type { Store } from "../../store/ports.js";

/** Histories with more than this many bytes are skipped, because each history has to be read completely. */
const LONGEST_BYTES = 16 * 1024 * 1024;
/**
 * An agent can write any totals into the history of its session. So at most this many models and requests of one
 * session are added.
 */
const MOST_MODELS = 100;
const MOST_REQUESTS = 10_000;
/** A session counts as imported if its first event is more than this many milliseconds older than its record. */
const IMPORTED_MS = 1_000;

/** The usage of one model, as the runtime totals it over the life of a session. */
interface Totals extends UsageNumbers {
  requests: number;
}

/** The totals of a session when it was last unloaded. */
export interface Unloaded {
  atMs: number;
  models: Map<string, Totals>;
}

/** Whether the model gateway counts all requests, so that the histories have nothing to add. */
export function countsAtGateway(config: Pick<Config, "provider">): boolean {
  return hasKey(config.provider);
}

/**
 * Whether the ledger has every turn of the session. It lacks turns from before the ledger existed, and the earlier
 * turns of an imported session. Nothing is added for a session with such turns, because their usage belongs to another
 * time or another fleet.
 */
function coversAll({ id, turns }: Pick<SessionRecord, "id" | "turns">, known: readonly UsagePart[]): boolean {
  const begun = known.reduce((sum, part) => (part.key === id ? sum + part.turns : sum), 0);
  return begun > 0 && begun >= turns;
}

/**
 * Returns ledger lines for the usage of a session that the ledger lacks. The runtime also counts requests that no
 * process of the fleet saw, for example because the process of the turn was killed. It writes its totals into the
 * history when a session is unloaded, and adds to these totals after the next load.
 *
 * @param known the usage in the ledger since its beginning, by session
 * @param digest hashes a text with a key, so that nobody without the key can find out the text
 */
export function missingLines(
  { id, owner, turns }: Pick<SessionRecord, "id" | "owner" | "turns">,
  unloaded: Unloaded,
  known: readonly UsagePart[],
  { host, digest }: { host: string | null; digest: (text: string) => string },
): LedgerLine[] {
  if (!coversAll({ id, turns }, known)) return [];
  let room = MOST_REQUESTS;
  return [...unloaded.models].flatMap(([model, totals]) => {
    const parts = known.filter((part) => part.key === id && part.model === model);
    const lack = (name: keyof Totals) => {
      const total = totals[name];
      return total === null ? null : Math.max(0, total - parts.reduce((sum, part) => sum + (part[name] ?? 0), 0));
    };
    const requests = Math.min(lack("requests") ?? 0, room);
    room -= requests;
    const numbers: UsageNumbers = {
      inputTokens: lack("inputTokens"),
      outputTokens: lack("outputTokens"),
      cacheReadTokens: lack("cacheReadTokens"),
      credits: lack("credits"),
    };
    if (requests === 0 && Object.values(numbers).every((number) => number === null || number === 0)) return [];
    const at = new Date(unloaded.atMs).toISOString();
    const line = (index: number): LedgerLine => ({
      // The id is a digest, because a purge replaces the session id only in the field `sessionId`.
      id: digest(JSON.stringify([id, unloaded.atMs, model, index])),
      at,
      kind: "request",
      user: owner,
      sessionId: id,
      model,
      host,
      tokenId: null,
      ...UNREPORTED,
      ms: null,
      outcome: "begun",
    });
    const begun = Array.from({ length: requests }, (_, index) => line(index));
    return [...begun, { ...line(0), ...numbers, outcome: "completed" }];
  });
}

/**
 * The totals that the runtime last wrote into a session's history. Null if the session was never unloaded, if it began
 * before `sinceMs`, or if its history is too long.
 */
export async function lastUnloaded(home: string, sessionId: string, sinceMs: number): Promise<Unloaded | null> {
  const history = new SessionEvents(home, sessionId, null, new LineSplitter());
  let first: HistoryEvent | undefined;
  let last: HistoryEvent | undefined;
  for (let left = LONGEST_BYTES; ; await nextPiece()) {
    const { events, bytes, atEnd } = history.read(left);
    first ??= events[0];
    last = events.findLast(({ type, agentId }) => type === "session.shutdown" && agentId === null) ?? last;
    if (atEnd) break;
    left -= bytes;
    if (left <= 0) return null;
  }
  if (first === undefined || first.atMs < sinceMs) return null;
  if (last === undefined || !isObject(last.data.modelMetrics)) return null;
  const metricsOf = Object.entries(last.data.modelMetrics).slice(0, MOST_MODELS);
  const models = metricsOf.flatMap(([model, metrics]): [string, Totals][] => {
    if (!isObject(metrics) || !isObject(metrics.requests) || !isObject(metrics.usage)) return [];
    const { usage } = metrics;
    const credits = creditsIn(metrics.totalNanoAiu);
    const totals = {
      requests: numberOf(metrics.requests.count) ?? 0,
      inputTokens: numberOf(usage.inputTokens),
      outputTokens: numberOf(usage.outputTokens),
      cacheReadTokens: numberOf(usage.cacheReadTokens),
      // Only GitHub's model service reports credits.
      credits: credits === 0 ? null : credits,
    };
    return [[ledgerModel(model), totals]];
  });
  return { atMs: last.atMs, models: new Map(models) };
}

function numberOf(value: unknown): number | null {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? value : null;
}

export interface ReconcileContext {
  store: Store;
  config: Pick<Config, "provider">;
  host: string | null;
  stateRoot: string;
}

/** Finds the sessions whose histories have changed since the last look, and adds their usage to the ledger. */
export class HistoryTotals {
  readonly #seen = new Map<string, number>();

  /**
   * Compares the histories of this host's servers with the ledger, and adds the lines that the ledger lacks. @returns
   * how many model requests these lines add
   */
  async reconcile(
    { store, config, host, stateRoot }: ReconcileContext,
    servers: readonly ServerRecord[],
  ): Promise<number> {
    if (countsAtGateway(config)) return 0;
    const homes = new Map(servers.map(({ id, home }) => [id, home]));
    const changed: { record: SessionRecord; unloaded: Unloaded }[] = [];
    const looked = new Map<string, number>();
    for (const record of await store.sessions.list(() => undefined)) {
      // Reading a history takes milliseconds, in which this process does nothing else. So let other work run in
      // between.
      await nextPiece();
      const home = homes.get(record.serverId);
      const at = home === undefined ? 0 : lastWrite(home, record.id);
      if (home === undefined || at === 0 || this.#seen.get(record.id) === at) continue;
      looked.set(record.id, at);
      const unloaded = await lastUnloaded(home, record.id, Date.parse(record.createdAt) - IMPORTED_MS);
      if (unloaded !== null) changed.push({ record, unloaded });
    }
    const added = changed.length === 0 ? 0 : await addMissing(changed, { store, host, stateRoot });
    // Remember the sessions only now. If adding the lines failed, the next look then finds the same sessions again.
    for (const [id, at] of looked) this.#seen.set(id, at);
    return added;
  }
}

/** Adds the lines that the ledger lacks. @returns how many model requests these lines add */
async function addMissing(
  changed: readonly { record: SessionRecord; unloaded: Unloaded }[],
  { store, host, stateRoot }: Omit<ReconcileContext, "config">,
): Promise<number> {
  const known = await store.usage.read({ from: 0, to: Date.now() + 1, by: "session" });
  const { of: digest } = await Pseudonyms.open(stateRoot, store);
  const lines = changed.flatMap(({ record, unloaded }) => missingLines(record, unloaded, known, { host, digest }));
  if (lines.length > 0) store.usage.append(lines);
  return lines.filter(({ outcome }) => outcome === "begun").length;
}
