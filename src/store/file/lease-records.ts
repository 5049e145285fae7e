import { FleetError } from "../../errors.js";
import type { Lease, LeaseAnswer, LeaseRequest } from "../store.js";
import type { StoreContext } from "./context.js";

/** One document a session with its lease and the queue for it. */
export class Leases {
  readonly #context: StoreContext;

  constructor(context: StoreContext) {
    this.#context = context;
  }

  acquire(_request: LeaseRequest): Promise<LeaseAnswer> {
    throw this.#missing();
  }

  leave(_sessionId: string, _token: string): Promise<void> {
    throw this.#missing();
  }

  renew(_sessionId: string, _token: string, _ttlMs: number): Promise<Lease> {
    throw this.#missing();
  }

  release(_sessionId: string, _token: string): Promise<void> {
    throw this.#missing();
  }

  read(_sessionId: string): Lease | null {
    return null;
  }

  check(_sessionId: string, _token: string): Lease {
    throw this.#missing();
  }

  #missing(): FleetError {
    return new FleetError("FLEET_INTERNAL", `Leases in ${this.#context.root} are not there yet.`);
  }
}
