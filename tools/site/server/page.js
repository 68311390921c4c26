"use strict";
(function () {
  var late = document.createElement("p"), busy = false, again = false;
  late.className = "box";
  late.hidden = true;
  late.setAttribute("role", "status");
  late.textContent = "The server does not answer. What is shown here is how things stood.";
  document.body.prepend(late);
  function show() {
    if (busy) { again = true; return; }
    busy = true;
    fetch(location.pathname, {cache: "no-store"}).then(function (r) { return r.text(); }).then(function (text) {
      var next = new DOMParser().parseFromString(text, "text/html");
      document.title = next.title;
      document.querySelector("main").replaceWith(document.adoptNode(next.querySelector("main")));
      late.hidden = true;
    }).catch(function () {
      late.hidden = false;
    }).finally(function () {
      busy = false;
      if (again) { again = false; setTimeout(show, 300); }
    });
  }
  new EventSource("/api/v1/events").onmessage = show;
  setInterval(function () { if (!document.hidden) { show(); } }, 5000);
})();
