import { readdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { parseObject } from "../../../config/values/json.js";
import { assertTokenId, isTokenId, type TokenEnd } from "../../../model/token.js";
import {
  closeQuietly,
  makeFolder,
  scratchName,
  syncFolder,
  unlinkQuietly,
  writeNewFile,
} from "../../file/commit/durable.js";
import { mediumError, readIfThere } from "../../file/failures.js";
import { ensureStateFolder } from "../../file/state-folder.js";

type Noted = Pick<TokenEnd, "at" | "until">;

/**
 * The expiries and revocations of tokens that this host remembers, each in a file of the state folder. Somebody with
 * write access to Redis can restore an earlier record of a token in Redis, but cannot change these files.
 */
export class TokenEnds {
  readonly #root: string;
  readonly #folder: string;

  constructor(root: string) {
    this.#root = root;
    this.#folder = join(root, "token-ends");
  }

  /** The remembered expiry or revocation, or undefined. A file that cannot be parsed counts as a revocation. */
  read(id: string): Noted | undefined {
    const path = this.#pathOf(id);
    const text = readIfThere(path, () => readFileSync(path, "utf8"));
    if (text === undefined) return undefined;
    const { at, until } = parseObject(text) ?? {};
    return { at: typeof at === "string" ? at : null, until: typeof until === "string" ? until : null };
  }

  list(): TokenEnd[] {
    return this.#ids().flatMap((id) => {
      const noted = this.read(id);
      return noted === undefined ? [] : [{ id, ...noted }];
    });
  }

  /** Remembers an expiry or revocation durably, unless this host already remembers one that is not later. */
  async note({ id, at, until }: TokenEnd): Promise<void> {
    assertTokenId(id);
    const before = this.read(id);
    if (before !== undefined && (before.at === null || (at !== null && before.at <= at))) return;
    const temp = join(this.#root, scratchName("tmp"));
    try {
      ensureStateFolder(this.#root);
      makeFolder(this.#folder);
      closeQuietly(await writeNewFile(temp, Buffer.from(`${JSON.stringify({ at, until })}\n`)));
      renameSync(temp, this.#pathOf(id));
      await syncFolder(this.#folder);
    } catch (error) {
      throw mediumError("write", this.#folder, error);
    } finally {
      unlinkQuietly(temp);
    }
  }

  /** Forgets tokens that would have expired by now anyway. @param now milliseconds since the epoch, by Redis's clock */
  forgetExpired(now: number): void {
    for (const id of this.#ids()) {
      const until = this.read(id)?.until;
      if (typeof until === "string" && Date.parse(until) < now) unlinkQuietly(this.#pathOf(id));
    }
  }

  #ids(): string[] {
    return (readIfThere(this.#folder, () => readdirSync(this.#folder)) ?? []).filter(isTokenId);
  }

  #pathOf(id: string): string {
    return join(this.#folder, id);
  }
}
