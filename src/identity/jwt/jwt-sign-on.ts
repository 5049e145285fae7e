import type { Store } from "../../store/ports.js";
import type { Identity } from "../identity.js";
import { isRevoked } from "../revocations.js";
import type { Refusal, SignOnContext } from "../sign-on.js";
import { Refused } from "./claims.js";
import { NoKeys } from "./issuer-keys.js";
import { JwtVerifier } from "./verifier.js";

/** Finds out who presents a JSON Web Token. */
export class JwtSignOn {
  readonly #store: Store;
  readonly #verifier: JwtVerifier;

  constructor({ store, config }: SignOnContext) {
    this.#store = store;
    this.#verifier = new JwtVerifier(config.identity.jwt);
  }

  async identify(token: string): Promise<Identity | Refusal> {
    try {
      const identity = await this.#verifier.verify(token);
      const { tokenId, user } = identity;
      if (await isRevoked(this.#store, tokenId)) return { refused: `The token ${tokenId} of ${user} was revoked.` };
      return identity;
    } catch (error) {
      if (error instanceof Refused) return { refused: `The JSON Web Token is refused: ${error.message}.` };
      if (error instanceof NoKeys) {
        return { refused: `The JSON Web Token cannot be checked now: ${error.message}.`, isUnchecked: true };
      }
      throw error;
    }
  }

  async isStillGood({ tokenId, expiresAt }: Identity): Promise<boolean> {
    return Date.now() < Date.parse(expiresAt ?? "") && !(await isRevoked(this.#store, tokenId));
  }

  takeWarnings(): string[] {
    return this.#verifier.takeWarnings();
  }
}
