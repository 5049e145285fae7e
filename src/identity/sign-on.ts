import type { Store } from "../store/ports.js";
import type { HostIdentity, Identity } from "./identity.js";
import { isTokenGood, verifyToken } from "./tokens.js";

/** Finds out who presents a credential. Every entry point asks it. */
export class SignOn {
  readonly #store: Store;

  constructor({ store }: { store: Store }) {
    this.#store = store;
  }

  /** The user or the host that presents the credential. Null if the credential is not valid. */
  async identify(credential: unknown): Promise<Identity | HostIdentity | null> {
    return await verifyToken(this.#store, credential);
  }

  /** Whether the credential of an identity is still valid: it was not revoked, and has not expired. */
  async isStillGood(identity: Identity): Promise<boolean> {
    return await isTokenGood(this.#store, identity);
  }
}
