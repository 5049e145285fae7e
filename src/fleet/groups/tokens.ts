import { type Duration, parseDuration } from "../../config/values/duration.js";
import { option } from "../../errors.js";
import {
  type IssuedToken,
  issueToken,
  listTokens,
  revokeTokens,
  type TokenView,
  validateTokenId,
} from "../../identity/tokens.js";
import * as arg from "../arguments.js";
import { Group } from "./group.js";

/** The tokens that clients present at the front door. */
export class TokenGroup extends Group {
  /**
   * Issues a token that lets clients of the user connect to the front door. Only the result contains the token. The
   * fleet stores a hash of it.
   *
   * @param options.ttl how long the token is valid, such as `30d`; if left out, until it is revoked
   */
  async issue(user: string, options: { ttl?: Duration } = {}): Promise<IssuedToken> {
    const ttlMs = options.ttl === undefined ? null : parseDuration(options.ttl, { name: option("ttl") });
    return await issueToken(this.parts.store, user, ttlMs);
  }

  /** Lists the tokens that were issued and not revoked, of all users or of one user. */
  async list(options: { user?: string | undefined } = {}): Promise<TokenView[]> {
    return await listTokens(this.parts.store, options.user);
  }

  /** Revokes tokens by their ids, or all tokens of a user. Resolves with all ids, even of tokens that did not exist. */
  async revoke(which: { ids: readonly string[] } | { user: string }): Promise<{ revoked: string[] }> {
    return { revoked: await revokeTokens(this.parts.store, which) };
  }

  static {
    const ids = { check: (value: unknown, name: string) => arg.texts(value, name).map((id) => validateTokenId(id)) };
    Group.guard(TokenGroup.prototype, {
      issue: [arg.user, arg.optional({ ttl: { check: arg.span } })],
      list: [arg.optional(arg.USER)],
      revoke: [["which", arg.oneOf({ ids, ...arg.USER })]],
    });
  }
}
