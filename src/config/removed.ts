import type { Suggestion } from "../errors.js";

/** The keys that earlier versions had, each with what replaces it. */
export const REMOVED: Readonly<Record<string, Suggestion>> = {
  "host.ca": "Remove it: the certificate of serve.tls and storeOptions.keyFile prove what a host is.",
  "host.peers": "Remove it: the certificate of serve.tls and storeOptions.keyFile prove what a host is.",
  "host.insecure": "Set insecure, at the top level, in its place.",
  "serve.insecure": "Set insecure, at the top level, in its place.",
  "storeOptions.insecure": "Set insecure, at the top level, in its place.",
};
