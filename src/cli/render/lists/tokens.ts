import type { TokenView } from "../../../identity/tokens.js";
import { renderSince, renderUntil, USER } from "../table.js";
import type { List } from "./list.js";

export const TOKENS: List<TokenView> = {
  kind: "token",
  idOf: ({ id }) => id,
  columns: [
    { heading: "TOKEN", field: "id", cut: "middle" },
    { ...USER, field: "user" },
    { heading: "AGE", field: "createdAt", yields: 1, isAge: true, cell: ({ createdAt }) => renderSince(createdAt) },
    { heading: "EXPIRES", field: "expiresAt", cell: renderExpiry },
    { heading: "SCOPES", field: "scopes", yields: 2, value: ({ scopes }) => scopes.join(" ") },
    { heading: "LABEL", field: "label", yields: 3 },
    { heading: "SESSION", field: "sessionId", wide: true },
    {
      ...{ heading: "LAST USE", field: "lastUsedAt", wide: true, isAge: true },
      cell: ({ lastUsedAt }) => (lastUsedAt === null ? "never" : renderSince(lastUsedAt)),
    },
  ],
};

function renderExpiry({ expired, expiresAt }: TokenView) {
  if (expired) return "expired";
  return expiresAt === null ? "never" : renderUntil(expiresAt);
}
