import { isDeepStrictEqual } from "node:util";
import type { Placement, UserPlacement } from "../base/host.js";
import { keyDigest, userDigest } from "../base/ids.js";
import type { KeyedTurn } from "../base/session.js";
import { assertTokenId, endedBy, isTokenId, type TokenEnd, type TokenRecord, tokenExists } from "../base/token.js";
import { isDamaged } from "./failures.js";
import { type FleetRows, kind } from "./rows.js";
import { type OnUnreadable, Table } from "./table.js";

export const TOKENS = kind<TokenRecord>("token", { assertId: assertTokenId });
export const TOKEN_USES = kind<{ at: string }>("token-use", { home: "use" });
const TOKEN_ENDS = kind<TokenEnd>("token-end", { home: "host" });

/** The tokens, when each was used last, and which of them this host knows to have ended. */
export class TokenTable {
  readonly #tokens: Table<TokenRecord>;
  readonly #uses: Table<{ at: string }>;
  /** Null if nobody but this fleet can write to the store, so that no host needs a memory of its own. */
  readonly #ends: Table<TokenEnd> | null;

  readonly #warn: (message: string) => void;

  constructor(rows: FleetRows, { isShared, warn }: { isShared: boolean; warn: (message: string) => void }) {
    this.#warn = warn;
    this.#tokens = new Table(rows, TOKENS);
    this.#uses = new Table(rows, TOKEN_USES);
    this.#ends = isShared ? new Table(rows, TOKEN_ENDS) : null;
  }

  /** The record of a token, or null. Costs one read, however many tokens there are. */
  async read(id: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    const [record, end] = await Promise.all([this.#readIfSound(id), this.#ends?.read(id)]);
    if (record === null || end == null) return record;
    return end.at === null ? null : endedBy(record, end.at);
  }

  /** A token that somebody else wrote to Redis counts as unknown. */
  async #readIfSound(id: string): Promise<TokenRecord | null> {
    try {
      return await this.#tokens.read(id);
    } catch (error) {
      if (this.#ends === null || !isDamaged(error)) throw error;
      this.#warn(error.message);
      return null;
    }
  }

  /**
   * Records a token. Once the promise resolves, every process that uses this store accepts the token.
   *
   * @throws FleetError `FLEET_INTERNAL` when the id is taken.
   */
  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#tokens.create(record.id, record))) throw tokenExists(record.id);
  }

  /**
   * Makes a token expire at a time (ISO 8601), unless it expires earlier anyway. Resolves with the resulting record, or
   * with null if there is no such token. Never brings a revoked token back.
   */
  async endBy(id: string, at: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    return await this.#tokens.update(id, (draft) => {
      draft.record = draft.record && endedBy(draft.record, at);
      return draft.record;
    });
  }

  /**
   * Records when a token was used (ISO 8601). A crash may lose this. Does nothing if there is no such token, and never
   * brings a revoked token back.
   */
  async used(id: string, at: string): Promise<void> {
    if ((await this.read(id)) === null) return;
    await this.#uses.put(id, { at });
    // If the token was deleted before this record was written, nobody else would delete the record.
    if ((await this.read(id)) === null) await this.#uses.delete(id);
  }

  /** For each token, the time that {@link used} recorded last, or null. */
  async lastUses(ids: readonly string[]): Promise<(string | null)[]> {
    const uses = await this.#uses.rows.read(TOKEN_USES, ids);
    return uses.map((use) => use?.record.at ?? null);
  }

  /** Revokes a token. Once the promise resolves, no process finds the token. Resolves with true if it existed. */
  async delete(id: string): Promise<boolean> {
    if (!isTokenId(id)) return false;
    const existed = await this.#tokens.delete(id);
    await this.#uses.delete(id);
    return existed;
  }

  async list(): Promise<TokenRecord[]> {
    // Only warn about an unreadable record, so that the other tokens can still be listed and revoked.
    const records = await this.#tokens.list({}, (_, error) => this.#warn(error.message));
    const ends = new Map((await this.notedEnds()).map((end) => [end.id, end.at]));
    return records.flatMap((record) => {
      const at = ends.get(record.id);
      if (at === undefined) return record;
      return at === null ? [] : endedBy(record, at);
    });
  }

  /**
   * Makes this host remember a token's expiry or revocation, so that nobody with write access to the store can undo it
   * here. This host then no longer finds a revoked token. If nobody else can write to the store, this does nothing.
   */
  async noteEnd(end: TokenEnd): Promise<void> {
    assertTokenId(end.id);
    await this.#ends?.update(end.id, (draft) => {
      const known = draft.record;
      const isEarlier = known === null || (known.at !== null && (end.at === null || end.at < known.at));
      if (isEarlier) draft.record = end;
    });
  }

  /** The expiries and revocations that {@link noteEnd} has recorded on this host. */
  async notedEnds(): Promise<TokenEnd[]> {
    return (await this.#ends?.list()) ?? [];
  }

  /** Forgets ends of tokens that would have expired by now anyway. @param now in milliseconds since the epoch */
  async forgetEnds(now: number): Promise<void> {
    const over = (await this.notedEnds()).filter(({ until }) => until !== null && Date.parse(until) < now);
    for (const { id } of over) await this.#ends?.delete(id);
  }

  /** Whether {@link noteEnd} has recorded on this host that this token (or other credential) was revoked. */
  async isNotedRevoked(id: string): Promise<boolean> {
    return (await this.#ends?.read(id))?.at === null;
  }
}

export const KEYED_TURNS = kind<KeyedTurn>("keyed-turn", { by: { user: ({ user }) => user } });

export class KeyedTurnTable {
  readonly #table: Table<KeyedTurn>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, KEYED_TURNS);
  }

  /** The record of a key, or null. Costs one read, however many records there are. Returns expired records, too. */
  async read(user: string, key: string): Promise<KeyedTurn | null> {
    return await this.#table.read(nameOf(user, key));
  }

  /** Resolves with false, and writes nothing, if there is already a record for the user and key. */
  async create(record: KeyedTurn): Promise<boolean> {
    return await this.#table.create(nameOf(record.user, record.key), record);
  }

  /** Replaces the record of the same user and key. If two processes replace it at the same time, one of them wins. */
  async replace(record: KeyedTurn): Promise<void> {
    await this.#table.put(nameOf(record.user, record.key), record);
  }

  /** Succeeds even if there is no such record. */
  async delete(user: string, key: string): Promise<void> {
    await this.#table.delete(nameOf(user, key));
  }

  /** The number of the user's records. The cost does not depend on the records of other users. */
  async count(user: string): Promise<number> {
    return await this.#table.rows.count(KEYED_TURNS, { by: "user", value: user });
  }

  /** The records of a user, or of all users if `user` is null. Omits and reports records that cannot be read. */
  async list(user: string | null, onUnreadable?: OnUnreadable): Promise<KeyedTurn[]> {
    return await this.#table.list(user === null ? {} : { by: "user", value: user }, onUnreadable ?? (() => undefined));
  }
}

/** The key can be any text, so the id contains digests. */
function nameOf(user: string, key: string): string {
  return `${userDigest(user)}.${keyDigest(key)}`;
}

export const PLACEMENTS = kind<UserPlacement>("placement");

export class PlacementTable {
  readonly #table: Table<UserPlacement>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, PLACEMENTS);
  }

  /** The placement of a user, or null. Costs one read, however many users there are. */
  async read(user: string): Promise<Placement | null> {
    return (await this.#table.read(user))?.placement ?? null;
  }

  /**
   * Records `to` if the recorded placement is still `from`. Resolves with the placement that is recorded afterwards.
   * Two processes that do so at the same time get the same result.
   */
  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    return await this.#table.update(user, (draft) => {
      const current = draft.record?.placement ?? null;
      if (current !== null && !isDeepStrictEqual(current, from)) return current;
      draft.record = { user, placement: to };
      return to;
    });
  }

  /** Succeeds even if the user has no placement. */
  async delete(user: string): Promise<void> {
    await this.#table.delete(user);
  }

  async list(): Promise<UserPlacement[]> {
    return await this.#table.list();
  }
}

export const PSEUDONYM_KEYS = kind<{ key: string }>("pseudonym-key");
